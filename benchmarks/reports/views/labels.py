"""Labels that qualify figures: random weights, times of the host, smoke run, partial, invalid and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ....backends import UNTESTED
from ...outcome.end_to_end import EndToEnd
from ...outcome.model import Bench, Target
from ..blocks import Table, word_columns

HOSTED = "emulated"
_UNTESTED = f"backend {UNTESTED}"


def joined(parts: Iterable[str | None], separator: str = " · ") -> str:
    """Joins the parts that aren't empty."""
    return separator.join(part for part in parts if part)


def titled(title: str, tags: Iterable[str]) -> str:
    """A title with everything that qualifies all figures under it."""
    return joined([title, *tags])


def bench_tags(bench: Bench) -> list[str]:
    """What qualifies all figures of a bench result."""
    random = any(target.model.random_weights for target in bench.measured)
    untested = any(target.device.untested for target in bench.measured)
    return _tags(bench, {"random weights": random, _UNTESTED: untested})


def whole_tags(result: EndToEnd) -> list[str]:
    """What qualifies all figures of end-to-end runs."""
    random = any(process.random_weights for process in result.processes)
    emulated = any("emulated" in process.device for process in result.processes)
    untested = result.device is not None and result.device.untested
    return _tags(result, {"random weights": random, "emulated, no device's time": emulated, _UNTESTED: untested})


def _tags(result: Bench | EndToEnd, own: dict[str, bool]) -> list[str]:
    """The words in `own` that are true, then those of every measurement."""
    tags = own | {
        "smoke run, no result": result.method.quick,
        "partial: interrupted": result.status == "partial",
        "failed": result.status == "failed",
    }
    return [words for words, is_true in tags.items() if is_true]


def verdict(target: Target) -> str:
    """Whether a target's figures may be used, in one or two words."""
    if target.valid:
        return "valid" if target.real else HOSTED
    return target.status if target.status in ("failed", "not run", "unavailable") else "invalid"


def reasons(named: Iterable[tuple[str, str, Sequence[str]]]) -> list[Table[tuple[str, str, str]]]:
    """A table of what is invalid and why; none if everything is valid. named: name, verdict and reasons of each."""
    rows = [(name, word, "; ".join(reasons)) for name, word, reasons in named if reasons]
    return [Table("Reasons", word_columns("what", "is", "because"), rows)] if rows else []
