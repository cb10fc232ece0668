"""Checks names and numbers from the user early, and suggests the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from .. import UserError
from .words import count


def check_name(what: str, name: str, allowed: Collection[str], where: str = "") -> None:
    """Checks that `name` is one of `allowed`.

    Args:
        what: What the name is for, as the user wrote it: "--kernel", "backend".
        name: The given name.
        allowed: The valid names, in the order of the message.
        where: What they belong to, such as "on backend cpu".

    Raises:
        UserError: It isn't.
    """
    if name in allowed:
        return
    shown = f"{name!r}" if len(name) <= 80 else f"of {count(len(name), 'character')}"
    there = f" {where}" if where else ""
    raise UserError(f"{what} {shown} does not exist{there}; {meant(name, allowed)}allowed are {', '.join(allowed)}")


def meant(name: str, allowed: Collection[str]) -> str:
    """ "did you mean NAME? " with the nearest of `allowed`, or "" if none is near."""
    begun = [one for one in allowed if len(name) > 1 and one.startswith(name.lower())]
    near = begun or difflib.get_close_matches(name.lower(), allowed, n=1, cutoff=0.7)
    return f"did you mean {near[0]}? " if near else ""


def check_range(flag: str, value: float, least: float, most: float, why: str = "") -> None:
    """Checks a number.

    Args:
        flag: The option that gives it.
        value: The given number.
        least: The smallest that is allowed.
        most: The largest that is allowed.
        why: The reason for the limits, for the message.

    Raises:
        UserError: It is not between `least` and `most`, or NaN.
    """
    if not least <= value <= most:
        raise UserError(f"{flag} {value} is out of range; allowed is {least} to {most}{f' ({why})' if why else ''}")
