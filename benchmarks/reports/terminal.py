"""Blocks on a terminal. Charts are left to the page."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleRenderable
from rich.table import Table as RichTable
from rich.text import Text

from ...albert_core.terminal.console import new_console
from .blocks import Block, Heading, Table, Words
from .fit import fitted
from .views.columns import WIDE


def output_console(*, width: int | None = None) -> Console:
    """A console for tables: as wide as `width`, or COLUMNS, or the terminal; wide enough in a file or a pipe."""
    console = new_console(width=width)
    told = width is not None or "COLUMNS" in os.environ
    return console if told or console.is_terminal else new_console(width=WIDE)


def print_blocks(blocks: Iterable[Block], console: Console) -> None:
    """Prints headings, words and tables in their order, and how wide a terminal must be for all columns."""
    needed = 0
    for block in blocks:
        if isinstance(block, Heading):
            console.print(Text(block.text, style="bold"))
        elif isinstance(block, Words):
            console.print(Text(block.text, style=block.style))
        elif isinstance(block, Table):
            console.print(_drawn(block, console))
            needed = max(needed, *(column.least_width for column in block.columns))
    if console.width < needed:
        console.print(Text(f"more columns from {needed} characters on; all of them are in the JSON"))


def _drawn(table: Table[Any], console: Console) -> ConsoleRenderable:
    columns = [column for column in table.columns if column.least_width <= console.width]
    grid = RichTable(
        title=table.caption or None,
        title_justify="left",
        box=SIMPLE_HEAD if console.width >= WIDE else None,
        pad_edge=False,
    )
    for column in columns:
        header = _wrapped(column.header, [column.cell(entry) for entry in table.entries])
        grid.add_column(header, justify="right" if column.numeric else "left", overflow="fold")
    for entry in table.entries:
        grid.add_row(*(Text(column.cell(entry)) for column in columns), style=table.style(entry))
    return fitted(grid, console)


def _wrapped(header: str, cells: list[str]) -> str:
    """The header in two lines, where that makes a column of short cells narrower."""
    width = max(map(len, [*header.split(), *cells, header[: (len(header) + 1) // 2]]))
    return header if len(header) < width + 2 else textwrap.fill(header, width)
