"""Names that a user writes: checked before anything is begun, with the nearest right one where it is a slip."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from .. import UserError
from .words import count


def check_name(what: str, name: str, allowed: Collection[str], where: str = "") -> None:
    """Raises UserError where `name` is not one of `allowed`.

    Args:
        what: What is named, as the user wrote it: "--kernel", "backend".
        name: The name given.
        allowed: The names that exist, in the order in which the message lists them.
        where: What they belong to, such as "on backend cpu".
    """
    if name in allowed:
        return
    shown = f"{name!r}" if len(name) <= 80 else f"of {count(len(name), 'character')}"
    there = f" {where}" if where else ""
    raise UserError(f"{what} {shown} does not exist{there}; {meant(name, allowed)}allowed are {', '.join(allowed)}")


def meant(name: str, allowed: Collection[str]) -> str:
    """ "did you mean NAME? " with the nearest of `allowed`; empty where none is near."""
    begun = [one for one in allowed if len(name) > 1 and one.startswith(name.lower())]
    near = begun or difflib.get_close_matches(name.lower(), allowed, n=1, cutoff=0.7)
    return f"did you mean {near[0]}? " if near else ""
