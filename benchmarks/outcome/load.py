"""Reads results from files and validates them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from ... import UserError
from ...albert_core.config.parsing import read_json
from .end_to_end import END_TO_END, EndToEnd
from .model import BENCH, FALSE_TIMES, Bench
from .upgrade import schema_of, upgraded

KINDS: dict[str, type[Bench] | type[EndToEnd]] = {BENCH: Bench, END_TO_END: EndToEnd}
# pydantic adds the tag of a union's member, which no file contains, to the place of an error.
_TAGS = {"measured", "unmeasured", "whole", "timed", "judged", "uncompared"}


def load_result(path: Path) -> Bench | EndToEnd:
    """Reads a result of `isotrain bench`.

    Raises:
        UserError: The file contains anything else; the message says what.
    """
    document = upgraded(read_json(path, "give a result of isotrain bench", nan=True))
    kind = schema_of(document)
    why = f"its schema is {kind!r}, known are {', '.join(KINDS)}"
    if isinstance(kind, str) and kind in KINDS:
        try:
            return KINDS[kind].model_validate(document)
        except ValidationError as error:
            why = lack(error)
    raise UserError(f"{str(path)!r} is no result of isotrain bench: {why}; give one that isotrain bench wrote")


class Problem(NamedTuple):
    """One error of a document: its place (keys and indices joined by dots), and pydantic's kind and message."""

    place: str
    kind: str
    said: str


def problems(error: ValidationError) -> list[Problem]:
    return [
        Problem(
            ".".join(str(part) for part in one["loc"] if part not in _TAGS),
            one["type"],
            one["msg"].removeprefix("Value error, "),
        )
        for one in error.errors(include_url=False, include_input=False)
    ]


def lack(error: ValidationError) -> str:
    """What is missing in a document, or else its first error."""
    found = problems(error)
    missing = [one.place for one in found if one.kind == "missing"]
    if missing:
        return f"it lacks {', '.join(missing)}"
    place, _, said = found[0]
    return f"{place or 'document'}: {FALSE_TIMES if 'step_seconds' in place else said[0].lower() + said[1:]}"
