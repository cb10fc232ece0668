"""Results read back from their files: whole, of a known kind, and as their models say."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from ... import UserError
from ...albert_core.config.parsing import read_json
from .end_to_end import END_TO_END, EndToEnd
from .model import BENCH, FALSE_TIMES, Bench
from .upgrade import upgraded

KINDS: dict[str, type[Bench] | type[EndToEnd]] = {BENCH: Bench, END_TO_END: EndToEnd}
# Pydantic names the member of a union, which no file has, in the place of an error.
_TAGS = {"measured", "unmeasured", "whole", "timed", "judged", "uncompared"}


def load_result(path: Path) -> Bench | EndToEnd:
    """The result in a file of `isotrain bench`. Raises UserError for anything else, and says what it found."""
    document = upgraded(read_json(path, "give a result of isotrain bench", nan=True))
    kind = document.get("schema") if isinstance(document, dict) else None
    lack = f"its schema is {kind!r}, known are {', '.join(KINDS)}"
    if isinstance(kind, str) and kind in KINDS:
        try:
            return KINDS[kind].model_validate(document)
        except ValidationError as error:
            lack = _lack(error)
    raise UserError(f"{str(path)!r} is no result of isotrain bench: {lack}; give one that isotrain bench wrote")


def places(error: ValidationError) -> list[str]:
    """Where a document is not as its model says, as keys and indices with dots between them."""
    found = error.errors(include_url=False, include_input=False)
    return [".".join(str(part) for part in one["loc"] if part not in _TAGS) for one in found]


def _lack(error: ValidationError) -> str:
    """What is missing in a document, or else the first thing that is not as it should be."""
    found = error.errors(include_url=False, include_input=False)
    missing = [place for place, one in zip(places(error), found, strict=True) if one["type"] == "missing"]
    if missing:
        return f"it lacks {', '.join(missing)}"
    place, said = places(error)[0], found[0]["msg"].lower().removeprefix("value error, ")
    return f"{place}: {FALSE_TIMES if 'step_seconds' in place else said}"
