"""Fits tables into narrow terminals: columns that don't fit side by side are shown below each other."""

from __future__ import annotations

from collections import Counter

from rich.console import Console, ConsoleRenderable, Group
from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

# Cells without content.
_EMPTY = {"", "-"}


def fits(table: Table, console: Console) -> bool:
    """Whether `table` fits into the console's width without broken words and without long thin columns."""
    natural = Measurement.get(console, console.options.update(max_width=10_000), table)
    if natural.maximum > 1.5 * console.width:
        return False
    drawn = "".join(segment.text for line in console.render_lines(table) for segment in [*line, Segment("\n")])
    cells = (_plain(cell) for column in table.columns for cell in (column.header, *column.cells))
    return not Counter(word for cell in cells for word in cell.split()) - Counter(drawn.split())


def fitted(table: Table, console: Console) -> ConsoleRenderable:
    """`table` if it fits, else a block of lines per row, with the first cell as its heading."""
    if fits(table, console):
        return table
    headers = [_plain(column.header).replace("\n", " ") for column in table.columns]
    blocks: list[ConsoleRenderable] = [Text(_plain(table.title), style="italic")] if table.title else []
    for row, cells in zip(table.rows, zip(*(column.cells for column in table.columns), strict=True), strict=True):
        first, *others = (_plain(cell) for cell in cells)
        blocks.append(Text(first, style=f"bold {row.style or ''}"))
        named = zip(headers[1:], others, strict=True)
        lines = (f"{name}: {cell}" if name else cell for name, cell in named if cell not in _EMPTY)
        blocks += [Padding(Text(line.replace("\n", " ")), (0, 0, 0, 2)) for line in lines]
    return Group(*blocks)


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)
