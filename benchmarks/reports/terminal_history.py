"""Comparisons and histories as tables on a terminal."""

from __future__ import annotations

from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...albert_core.output.live import as_blocks
from ...albert_core.terminal.text import figure
from ..outcome.compare import REFUSED, SLOWER, Compared, Comparison
from ..outcome.history import History, Point
from .fit import fitted

# From this width on, a row has the interval and the number of blocks.
NARROW = 72


def print_comparison(comparison: Comparison, console: Console) -> None:
    console.print(Text(f"isotrain compare: {comparison.after} over {comparison.before}", style="bold"))
    console.print(Text(f"of {comparison.subject}"))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("target", overflow="fold")
    for header in ("speed", "95 % interval", "threshold"):
        table.add_column(header, justify="right")
    for header in ("verdict", "why"):
        table.add_column(header, overflow="fold")
    for one in comparison.targets:
        table.add_row(*_compared(one), style="red" if one.verdict in (SLOWER, REFUSED) else "")
    console.print(fitted(table, console))
    for label in comparison.alone:
        console.print(Text(f"note: {label}: only one of the two has it"))
    if not comparison.confirmed:
        console.print(Text("note: one run decides nothing; confirm it by a second one: --again"))


def _compared(one: Compared) -> list[str]:
    if one.speed is None:
        return [one.label, "", "", "", one.verdict, one.reason]
    speed = one.speed
    interval = f"{speed.low:.3f} to {speed.high:.3f}"
    return [one.label, f"{speed.median:.3f}x", interval, f"{one.threshold:.3g}", one.verdict, one.reason]


def print_history(history: History, console: Console) -> None:
    """For each target its course in a line, and a row a result."""
    for (name, model, dtype, device, config), members in groupby(history.points, key=lambda point: point.line):
        points = list(members)
        console.print(Text(name, style="bold"))
        what = f"{model}, {dtype}, {device}, configuration {config}"
        for line in filter(None, (what, _course(points))):
            console.print(Padding(Text(line), (0, 0, 0, 1)))
        console.print(fitted(_rows(points, console.width), console), end="\n\n")
    for reason in history.skipped:
        console.print(Text(f"left out: {reason}"))
    if history.foreign:
        console.print(Text(history.foreign, style="dim"))


def _course(points: list[Point]) -> str:
    """The valid results as blocks, and what the lowest and the highest stand for; nothing where it has no course."""
    speeds = [point.target.figures.samples_per_second.median for point in points if point.target.valid]
    if len(speeds) < 2:
        return ""
    blocks = iter(as_blocks(speeds))
    line = "".join(next(blocks) if point.target.valid else "x" for point in points)
    return f"{line}  {figure(min(speeds))} to {figure(max(speeds))} samples/s, last {figure(speeds[-1])}"


def _rows(points: list[Point], width: int) -> Table:
    """A row a result; a narrow terminal gets no intervals."""
    intervals = width >= NARROW
    table = Table(box=None, pad_edge=True, padding=(0, 1))
    for header in ("measured", "revision"):
        table.add_column(header, no_wrap=True)
    for header in ("samples/s", *(["95 % interval", "n"] if intervals else []), "change"):
        table.add_column(header, justify="right", no_wrap=True)
    for point in points:
        table.add_row(*_measured(point, intervals), style="" if point.target.valid else "red")
    return table


def _measured(point: Point, intervals: bool) -> list[str]:
    """The cells of a result. Its change says by an asterisk that the interval of the ratio excludes 1."""
    samples = point.target.figures.samples_per_second
    change = "" if point.target.valid else "INVALID"
    if point.change is not None:
        clear = "*" if point.change.low > 1 or point.change.high < 1 else ""
        change = f"{point.change.median:.3f}x{clear}"
    return [
        point.created[:16].replace("T", " "),
        point.revision,
        figure(samples.median),
        *([samples.words(), str(point.target.n)] if intervals else []),
        change,
    ]
