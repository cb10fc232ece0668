"""Whole training runs beside each other: seconds from the command to the trained head, measured or extrapolated."""

from __future__ import annotations

from ....albert_core.output.charts import Bar, BarChart
from ....albert_core.terminal.text import number
from ....kernels.words import count
from ...outcome.end_to_end import EndToEnd, Side
from ..blocks import Block, Heading, Table, Words, figure_columns, word_columns
from .labels import reasons, titled, whole_tags
from .loading import Found
from .text import joined


def end_to_end_runs(found: Found[EndToEnd], key: str) -> list[Block]:
    """Bars and a table of all sides, and what is wrong with some of them."""
    result = found.document
    known = result.processes[0] if result.processes else None
    blocks: list[Block] = [Heading(known.device if known else "end-to-end runs", found.path)]
    if known is not None:
        blocks.append(Words(f"Whole training runs: model {known.model}, {count(result.config.epochs, 'epoch')}"))
    named = titled("End-to-end runs", whole_tags(result))
    bars = tuple(_bar(side) for side in result.sides)
    if not all(bar.empty for bar in bars):
        words = "Less is better. Whiskers: 95 % intervals."
        groups = ("measured", "extrapolated") if any(side.extrapolated for side in result.sides) else ()
        blocks.append(BarChart(key, named, words, "seconds", bars, groups))
    columns = (
        *word_columns("what"),
        *figure_columns("seconds", "95 % interval", "ours is faster by"),
        *word_columns("valid"),
    )
    rows = tuple(_side_cells(side) for side in result.sides)
    flagged = frozenset(index for index, side in enumerate(result.sides) if not side.valid)
    blocks.append(Table(named, columns, rows, flagged))
    if any(side.figures for side in result.sides):
        blocks.append(_rates(result))
    blocks += [Words(f"Energy {source}") for source in _without_energy(result)]
    return blocks + reasons((side.name, _valid(side), side.reasons) for side in result.sides)


def _rates(result: EndToEnd) -> Table:
    """Work over seconds, and where that stands under the device's limits."""
    columns = (
        *word_columns("what"),
        *figure_columns("samples/s", "real tokens/s", "model TFLOP/s", "of the peak", "hardware TFLOP/s"),
        *figure_columns("of the peak", "FLOP/byte", "of the roof"),
        *word_columns("bound by"),
        *figure_columns("J/text"),
        *word_columns("valid"),
    )
    counted = [side for side in result.sides if side.figures is not None]
    flagged = frozenset(index for index, side in enumerate(counted) if not side.valid)
    titles = titled("End-to-end runs, work and limits", whole_tags(result))
    return Table(titles, columns, tuple(_rate_cells(side) for side in counted), flagged)


def _rate_cells(side: Side) -> tuple[str, ...]:
    figures, share, at = side.figures, side.share_of_peak, side.roofline
    assert figures is not None, "sides with figures only"
    joules = side.energy.joules_per_sample if side.energy is not None else None
    return (
        joined([side.name, side_words(side)], ", "),
        number(figures.samples_per_second.median),
        number(figures.real_tokens_per_second.median),
        number(figures.model_tflops.median),
        "n/a" if share is None else f"{share.model:.1%}",
        number(figures.hardware_tflops.median),
        "n/a" if share is None else f"{share.hardware:.1%}",
        "" if at is None else number(at.intensity_flop_per_byte),
        "" if at is None else f"{at.share:.1%}",
        "" if at is None else at.bound,
        "unavailable" if joules is None else f"{number(joules.median)} ({joules.words()})",
        _valid(side),
    )


def _without_energy(result: EndToEnd) -> list[str]:
    """Why our runs have no figure of energy."""
    known = [side.energy for side in result.sides if side.energy is not None and not side.extrapolated]
    return [energy.source for energy in known if energy.joules_per_sample is None]


def _bar(side: Side) -> Bar:
    style, seconds = int(side.extrapolated), side.seconds
    if seconds is None:
        return Bar(side.name, words=side_words(side), empty=True)
    return Bar(side.name, seconds.median, seconds.low, seconds.high, style, side_words(side), hatched=not side.valid)


def _valid(side: Side) -> str:
    return "valid" if side.valid else "invalid"


def side_words(side: Side) -> str:
    """What qualifies a side: that it is invalid, and that it was extrapolated, from how much."""
    part = side.timed_of
    estimate = "extrapolated" if side.extrapolated else ""
    if part is not None:
        estimate += f" from {part.steps:,} of {part.of_steps:,} steps"
    return joined(["" if side.valid else "invalid", estimate], ", ")


def _side_cells(side: Side) -> tuple[str, ...]:
    ratio = side.ratio
    return (
        joined([side.name, side_words(side)], ", "),
        "" if side.seconds is None else number(side.seconds.median),
        "" if side.seconds is None else side.seconds.words(),
        "" if ratio is None else f"{ratio.median:.1f}x ({ratio.low:.1f} to {ratio.high:.1f})",
        _valid(side),
    )
