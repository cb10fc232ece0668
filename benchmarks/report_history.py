"""Comparisons and histories as tables on a terminal."""

from __future__ import annotations

from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .columns import figure
from .compare import REFUSED, SLOWER, Compared, Comparison
from .history import History, Row

# What the rows of one table have in common.
LINE = ("target", "model", "dtype", "device", "config")
BAR_WIDTH = 24
# Eighths of a character cell.
BLOCKS = " ▏▎▍▌▋▊▉█"


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
    console.print(table)
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
    """A table with a bar a result, for each target on its own scale."""
    for _, members in groupby(history.rows, key=lambda row: [row[key] for key in LINE]):
        rows = list(members)
        first = rows[0]
        table = Table(
            title=", ".join(str(first[key]) for key in LINE),
            title_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
        )
        for header in ("measured", "revision"):
            table.add_column(header)
        for header in ("samples/s", "95 % interval", "n", "over the one before"):
            table.add_column(header, justify="right")
        table.add_column("", no_wrap=True)
        top = max((row["samples_per_second_median"] for row in rows if row["valid"]), default=0.0)
        for row in rows:
            table.add_row(*_measured(row, top), style="" if row["valid"] else "red")
        console.print(table)
    for reason in history.skipped:
        console.print(Text(f"left out: {reason}"))


def _measured(row: Row, top: float) -> list[str]:
    speed = row["samples_per_second_median"]
    interval = f"{figure(row['samples_per_second_low'])} to {figure(row['samples_per_second_high'])}"
    change = ""
    if row["change_median"] != "":
        change = f"{row['change_median']:.3f}x ({row['change_low']:.3f} to {row['change_high']:.3f})"
    chart = bar(speed / top) if row["valid"] else "INVALID"
    return [
        row["created"][:16].replace("T", " "),
        row["revision"],
        figure(speed),
        interval,
        str(row["n"]),
        change,
        chart,
    ]


def bar(share: float) -> str:
    """A bar of `share` (0 to 1) of BAR_WIDTH cells, to an eighth of a cell."""
    eighths = round(share * BAR_WIDTH * 8)
    return BLOCKS[8] * (eighths // 8) + (BLOCKS[eighths % 8] if eighths % 8 else "")
