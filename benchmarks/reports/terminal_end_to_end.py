"""A result of the whole-run comparison as tables on a terminal."""

from __future__ import annotations

from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...albert_core.terminal.text import figure
from ...kernels.words import count
from ..outcome.end_to_end import ACCURACY, EndToEnd, Side, WholeProcess
from ..outcome.model import Energy
from .columns import (
    HARDWARE_SHARE,
    HARDWARE_TFLOPS,
    MODEL_SHARE,
    MODEL_TFLOPS,
    ROOF_COLUMNS,
    SAMPLES,
    Column,
    Placed,
    rate,
)
from .fit import fitted
from .terminal import WIDE, peak_line

RATE_COLUMNS: tuple[Column[Placed], ...] = (
    SAMPLES,
    Column("real\ntokens/s", rate(lambda rates: rates.real_tokens_per_second)),
    Column("computed\ntokens/s", rate(lambda rates: rates.padded_tokens_per_second)),
    MODEL_TFLOPS,
    MODEL_SHARE,
    HARDWARE_TFLOPS,
    replace(HARDWARE_SHARE, narrow=False),
    *(column for column in ROOF_COLUMNS if column.narrow),
)
# What a narrow terminal leaves out of these, too.
ONLY_WIDE = ("FLOP\nper byte", "roof\nTFLOP/s")


def print_end_to_end(result: EndToEnd, console: Console) -> None:
    """Title, a row a side of seconds and one of work, the memory, then whatever qualifies the figures."""
    config = result.config
    known = result.processes[0] if result.processes else None
    random = known is not None and known.random_weights
    device = "unknown device" if known is None else known.device
    console.print(
        Text(
            f"isotrain bench end_to_end: {count(config.epochs, 'epoch')} at batch {config.batch_size} with one "
            f"evaluation each, {config.backend} ({device})",
            style="bold",
        )
    )
    model = config.model if known is None else known.model
    console.print(Text(f"model {model}; {config.dtype}; data {config.dataset}"))
    if result.status == "partial":
        console.print(Text("PARTIAL: the run was interrupted; this is what was complete", style="bold red"))
    table = Table(
        title=f"end-to-end runs{' (random weights)' if random else ''}",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("what")
    for header in ("seconds", "95 % interval", "ours is faster by", "extrapolated from"):
        table.add_column(header, justify="right")
    for side in result.sides:
        table.add_row(*_row(side), style="" if side.valid else "red")
    console.print(fitted(table, console))
    if result.peaks is not None and result.device is not None:
        console.print(fitted(_rates(result, random, console.width), console))
        console.print(Text(peak_line(config.backend, result.peaks, real=result.device.real)))
    if result.memory is not None:
        memory = result.memory
        most, above, alone = (
            figure(size / 2**20) for size in (memory.peak_bytes, memory.above_import_bytes, memory.import_torch_bytes)
        )
        console.print(
            Text(
                f"peak memory of {result.sides[0].name}: {most} MiB, {above} MiB above a process that only imports "
                f"torch ({alone} MiB)"
            )
        )
    for line in _details(result):
        console.print(line)


def _rates(result: EndToEnd, random: bool, width: int) -> Table:
    """Work over seconds, and where that stands under the device's limits."""
    table = Table(
        title=f"work and limits{' (random weights)' if random else ''}",
        title_justify="left",
        box=SIMPLE_HEAD if width >= WIDE else None,
        pad_edge=False,
        collapse_padding=True,
    )
    shown = [column for column in RATE_COLUMNS if width >= WIDE or (column.narrow and column.header not in ONLY_WIDE)]
    table.add_column("what", no_wrap=True)
    for column in shown:
        table.add_column(column.header, justify="right", overflow="fold")
    for side in result.sides:
        if side.reached is not None:
            name = _name(side) + ("\nextrapolated" if side.extrapolated else "")
            cells = (column.cell(side.reached) for column in shown)
            table.add_row(name, *cells, style="" if side.valid else "red")
    return table


def _energy(energy: Energy) -> str:
    joules = energy.joules_per_sample
    per_text = "" if joules is None else f"{figure(joules.median)} J/text ({joules.words()}): "
    return f"energy: {per_text}{energy.source}"


def _name(side: Side) -> str:
    return side.name if side.valid else f"INVALID {side.name}"


def _row(side: Side) -> list[str]:
    name = _name(side)
    if side.seconds is None:
        return [name, "none", "", "", ""]
    seconds, ratio, part = side.seconds, side.ratio, side.timed_of
    return [
        name,
        figure(seconds.median) + (" extrapolated" if side.extrapolated else ""),
        seconds.words(),
        "" if ratio is None else f"{ratio.median:.1f}x ({ratio.low:.1f} to {ratio.high:.1f}) extrapolated",
        ""
        if part is None
        else f"{part.steps:,} of {part.of_steps:,} steps, {part.validation_batches:,} of "
        f"{part.of_validation_batches:,} validation batches",
    ]


def _details(result: EndToEnd) -> list[Text]:
    own = result.sides[0]
    lines = []
    first = next((process for process in own.processes if isinstance(process, WholeProcess)), None)
    if first is not None:
        parts = ", ".join(f"{name} {figure(seconds)} s" for name, seconds in first.phases.items())
        lines.append(Text(f"{own.name}: {parts}; {count(first.step, 'step')}, accuracy {first.metrics[ACCURACY]:.4f}"))
        if own.energy is not None:
            lines.append(Text(_energy(own.energy)))
    for side in result.sides:
        lines += [Text(f"invalid: {side.name}: {reason}", style="red") for reason in side.reasons]
        lines += [Text(f"note: {side.name}: {warning}") for warning in side.warnings]
    return lines + [Text(f"note: {note}") for note in result.notes]
