"""A result of end-to-end runs as blocks: seconds from the command to the trained head, measured or extrapolated."""

from __future__ import annotations

from dataclasses import replace

from ....albert_core.output.charts import joined_name
from ....albert_core.terminal.text import figure
from ....kernels.words import count
from ...outcome.end_to_end import ACCURACY, EndToEnd, Side, WholeProcess
from ..blocks import Block, Column, Heading, Table, Words
from .bench import peak_words
from .columns import (
    BOUND,
    COMPUTED_TOKENS,
    HARDWARE_SHARE,
    HARDWARE_TFLOPS,
    INTENSITY,
    MODEL_SHARE,
    MODEL_TFLOPS,
    REAL_TOKENS,
    ROOF,
    ROOF_SHARE,
    SAMPLES,
    WIDE,
    Placed,
)
from .labels import joined, titled, whole_tags

RATES = (
    SAMPLES,
    REAL_TOKENS,
    COMPUTED_TOKENS,
    MODEL_TFLOPS,
    MODEL_SHARE,
    HARDWARE_TFLOPS,
    replace(HARDWARE_SHARE, least_width=WIDE),
    replace(INTENSITY, least_width=WIDE),
    replace(ROOF, least_width=WIDE),
    ROOF_SHARE,
    BOUND,
)


def end_to_end_view(result: EndToEnd) -> list[Block]:
    """Title, a row a side of seconds and one of work, the memory, then whatever qualifies the figures."""
    config = result.config
    known = result.processes[0] if result.processes else None
    device = "unknown device" if known is None else known.device
    model = config.model if known is None else known.model
    blocks: list[Block] = [
        Heading(
            f"isotrain bench end_to_end: {count(config.epochs, 'epoch')} at batch {config.batch_size} with one "
            f"evaluation each, {config.backend} ({device})"
        ),
        Words(f"model {model}; {config.dtype}; data {config.dataset}"),
    ]
    if result.status == "partial":
        blocks.append(Words("PARTIAL: the run was interrupted; this is what was complete", "bold red"))
    blocks += tables(result)
    if result.peaks is not None and result.device is not None:
        blocks.append(Words(peak_words(config.backend, result.peaks, result.device.real)))
    blocks += map(Words, _details(result))
    blocks += [Words(f"invalid: {side.name}: {reason}", "red") for side in result.sides for reason in side.reasons]
    warnings = [f"{side.name}: {warning}" for side in result.sides for warning in side.warnings]
    return blocks + [Words(f"note: {note}") for note in (*warnings, *result.notes)]


def tables(result: EndToEnd) -> list[Block]:
    """A table of each side's seconds, and if the work was counted, a table of rates and shares of the limits."""
    columns = (
        Column[Side]("what", _name, numeric=False),
        Column[Side]("seconds", lambda side: "none" if side.seconds is None else figure(side.seconds.median)),
        Column[Side]("95 % interval", lambda side: "" if side.seconds is None else side.seconds.words()),
        Column[Side]("ours is faster by", _ratio),
        Column[Side]("extrapolated from", _timed, numeric=False),
    )
    rates = (columns[0], *map(_of_reached, RATES))
    counted = [side for side in result.sides if side.reached is not None]
    tags = whole_tags(result)
    found: list[Block] = [Table(titled("End-to-end runs", tags), columns, result.sides, _style)]
    return found + ([Table(titled("Work and limits", tags), rates, counted, _style)] if counted else [])


def side_words(side: Side) -> str:
    """What qualifies a side: whether it is invalid, and what it was extrapolated from."""
    part = side.timed_of
    estimate = "extrapolated" if side.extrapolated else ""
    if part is not None:
        estimate += f" from {part.steps:,} of {part.of_steps:,} steps"
    return joined(["" if side.valid else "invalid", estimate], ", ")


def energy_words(side: Side) -> list[str]:
    """Joules of a side's runs and where they come from, or why there are none."""
    if side.energy is None or side.extrapolated:
        return []
    joules = side.energy.joules_per_sample
    value = "" if joules is None else f"{figure(joules.median)} J/sample ({joules.words()}): "
    return [f"energy of {side.name}: {value}{side.energy.source}"]


def _of_reached(column: Column[Placed]) -> Column[Side]:
    """The column of a side whose work was counted."""

    def cell(side: Side) -> str:
        return "" if side.reached is None else column.cell(side.reached)

    return Column(column.header, cell, column.numeric, column.least_width)


def _name(side: Side) -> str:
    words = joined(["" if side.valid else "INVALID", "extrapolated" if side.extrapolated else ""], ", ")
    return joined_name(side.name, words)


def _style(side: Side) -> str:
    return "" if side.valid else "red"


def _ratio(side: Side) -> str:
    ratio = side.ratio
    return "" if ratio is None else f"{ratio.median:.1f}x ({ratio.low:.1f} to {ratio.high:.1f})"


def _timed(side: Side) -> str:
    part = side.timed_of
    if part is None:
        return ""
    steps = f"{part.steps:,} of {part.of_steps:,} steps"
    return f"{steps}, {part.validation_batches:,} of {part.of_validation_batches:,} validation batches"


def _details(result: EndToEnd) -> list[str]:
    """The memory, the phases and the energy of this project's run."""
    own = result.sides[0]
    lines = []
    if result.memory is not None:
        memory = result.memory
        most, above, alone = (
            figure(size / 2**20) for size in (memory.peak_bytes, memory.above_import_bytes, memory.import_torch_bytes)
        )
        lines.append(
            f"peak memory of {own.name}: {most} MiB, {above} MiB above a process that only imports torch ({alone} MiB)"
        )
    first = next((process for process in own.processes if isinstance(process, WholeProcess)), None)
    if first is not None:
        parts = ", ".join(f"{name} {figure(seconds)} s" for name, seconds in first.phases.items())
        lines.append(f"{own.name}: {parts}; {count(first.step, 'step')}, accuracy {first.metrics[ACCURACY]:.4f}")
    return lines + energy_words(own)
