"""Tables that a narrow terminal can show: columns without room beside each other stand below each other."""

from __future__ import annotations

from collections import Counter

from rich.console import Console, ConsoleRenderable, Group
from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

# Cells that say nothing.
_EMPTY = {"", "-"}


def fits(table: Table, console: Console) -> bool:
    """Whether the console's width has room for `table`: no word is broken or cut, no cell becomes a long thin column.

    The cells are texts, or what `Table.add_row` takes for one.
    """
    natural = Measurement.get(console, console.options.update(max_width=10_000), table)
    if natural.maximum > 1.5 * console.width:
        return False
    drawn = "".join(segment.text for line in console.render_lines(table) for segment in [*line, Segment("\n")])
    cells = (_plain(cell) for column in table.columns for cell in (column.header, *column.cells))
    return not Counter(word for cell in cells for word in cell.split()) - Counter(drawn.split())


def fitted(table: Table, console: Console) -> ConsoleRenderable:
    """`table` where it fits; else a block of lines a row, led by its first cell."""
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
