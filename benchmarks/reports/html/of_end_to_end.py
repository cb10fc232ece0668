"""Whole training runs beside each other: seconds from the command to the trained head, measured or extrapolated."""

from __future__ import annotations

from ....albert_core.output.charts import Bar, BarChart
from ....kernels.words import count
from ...outcome.end_to_end import EndToEnd, Side
from ..blocks import Block, Heading, Words
from ..views.end_to_end import energy_words, side_words, tables
from ..views.labels import reasons, titled, whole_tags
from .loading import Found


def end_to_end_runs(found: Found[EndToEnd], key: str) -> list[Block]:
    """Bars and tables of all sides, and what is wrong with some of them."""
    result = found.document
    known = result.processes[0] if result.processes else None
    blocks: list[Block] = [Heading(known.device if known else "end-to-end runs", found.path)]
    if known is not None:
        blocks.append(Words(f"Whole training runs: model {known.model}, {count(result.config.epochs, 'epoch')}"))
    bars = tuple(_bar(side) for side in result.sides)
    if not all(bar.empty for bar in bars):
        words = "Less is better. Whiskers: 95 % intervals."
        groups = ("measured", "extrapolated") if any(side.extrapolated for side in result.sides) else ()
        title = titled("End-to-end runs", whole_tags(result))
        blocks.append(BarChart(key, title, words, "seconds", bars, groups))
    energy = [Words(words) for side in result.sides for words in energy_words(side)]
    why = reasons((side.name, "valid" if side.valid else "invalid", side.reasons) for side in result.sides)
    return [*blocks, *tables(result), *energy, *why]


def _bar(side: Side) -> Bar:
    style, seconds = int(side.extrapolated), side.seconds
    if seconds is None:
        return Bar(side.name, words=side_words(side), empty=True)
    return Bar(side.name, seconds.median, seconds.low, seconds.high, style, side_words(side), hatched=not side.valid)
