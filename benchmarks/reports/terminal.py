"""Blocks on a terminal. Columns without room beside each other stand below each other; charts are left to the page."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleRenderable, Group
from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from ...albert_core.terminal.console import new_console
from .blocks import Block, Column, Heading, Table, Words
from .views.columns import WIDE

# Cells that say nothing.
_EMPTY = {"", "-"}


def output_console(*, width: int | None = None) -> Console:
    """A console for tables: as wide as `width`, or COLUMNS, or the terminal; wide enough in a file or a pipe."""
    console = new_console(width=width)
    is_fixed = width is not None or "COLUMNS" in os.environ
    return console if is_fixed or console.is_terminal else new_console(width=WIDE)


def print_blocks(blocks: Iterable[Block], console: Console) -> None:
    """Prints headings, words and tables in their order, and how wide a terminal must be for all columns."""
    needed = 0
    for block in blocks:
        if isinstance(block, Heading):
            console.print(Text(block.text, style="bold"))
        elif isinstance(block, Words):
            console.print(Text(block.text, style=block.style))
        elif isinstance(block, Table):
            console.print(fitted(block, console))
            needed = max(needed, *(column.least_width for column in block.columns))
    if console.width < needed:
        console.print(Text(f"more columns from {needed} characters on; all of them are in the JSON"))


def fitted(table: Table[Any], console: Console) -> ConsoleRenderable:
    """`table` with columns where they fit; else a block of lines a row, led by its first cell."""
    grid = in_columns(table, console)
    if grid is not None:
        return grid
    blocks: list[ConsoleRenderable] = [Text(table.caption, style="italic")] if table.caption else []
    first, *others = _columns(table, console)
    for entry in table.entries:
        blocks.append(Text(first.cell(entry), style=f"bold {table.style(entry)}"))
        named = [(column.header, column.cell(entry)) for column in others]
        lines = [f"{header}: {cell}" if header else cell for header, cell in named if cell not in _EMPTY]
        blocks += [Padding(Text(line), (0, 0, 0, 2)) for line in lines]
    return Group(*blocks)


def in_columns(table: Table[Any], console: Console) -> RichTable | None:
    """`table` with columns where the console's width has room for them, headers in two lines where that helps.

    There is room if no word is broken or cut and no cell becomes a long thin column.
    """
    columns = _columns(table, console)
    has_headers = any(column.header for column in columns)
    grid = RichTable(
        title=table.caption or None,
        title_justify="left",
        box=SIMPLE_HEAD if has_headers and console.width >= WIDE else None,
        pad_edge=False,
        show_header=has_headers,
    )
    for column in columns:
        grid.add_column(column.header, justify="right" if column.numeric else "left", overflow="fold")
    rows = [[column.cell(entry) for column in columns] for entry in table.entries]
    for row, entry in zip(rows, table.entries, strict=True):
        grid.add_row(*map(Text, row), style=table.style(entry))

    def natural_width() -> int:
        return Measurement.get(console, console.options.update(max_width=10_000), grid).maximum

    if natural_width() > console.width:
        for place, column in enumerate(columns):
            grid.columns[place].header = _wrapped(column.header, [row[place] for row in rows])
    if natural_width() > 1.5 * console.width:
        return None
    drawn = "".join(segment.text for line in console.render_lines(grid) for segment in [*line, Segment("\n")])
    texts = [*(column.header for column in columns), *(cell for row in rows for cell in row)]
    broken = Counter(word for text in texts for word in text.split()) - Counter(drawn.split())
    return None if broken else grid


def _columns(table: Table[Any], console: Console) -> list[Column[Any]]:
    return [column for column in table.columns if column.least_width <= console.width]


def _wrapped(header: str, cells: list[str]) -> str:
    """The header in two lines, where that makes a column of short cells narrower by more than a character."""
    widths = range(max(map(len, [*header.split(), *cells, ""])), len(header) - 1)
    return next((text for width in widths if (text := textwrap.fill(header, width)).count("\n") == 1), header)
