"""Tables of data: named columns, and rows that know their place in a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ... import UserError
from ..terminal.text import clean, shorten

# Rows read at a time: enough for batches of texts of similar length. Fewer if they have more characters than that.
PART_ROWS = 8192
PART_CHARACTERS = 1 << 23

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        origin: The table's name in messages, such as a file name.
        rows: A list of cells per row, as long as `columns`. Cells of JSON and Parquet files may be any JSON value, and
            None if the object lacks the column.
        positions: For each row, the number that `unit` counts: "line" (first line of a CSV row, from 1) or "row" (from
            0, as `datasets` counts).
    """

    origin: str
    columns: list[str]
    rows: list[list[Any]]
    positions: Sequence[int]
    unit: str = "line"
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def column(self, name: str) -> list[Any]:
        """All cells under `name`, in row order."""
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    def aligned(self, columns: Sequence[str]) -> list[list[Any]]:
        """The rows with their cells under `columns`. Cells are None if the table lacks a column."""
        if list(columns) == self.columns:
            return self.rows
        places = {name: index for index, name in enumerate(self.columns)}
        return [[row[places[name]] if name in places else None for name in columns] for row in self.rows]

    def place(self, row: int) -> str:
        """The position of a row for messages: ``train.csv, line 12``."""
        return f"{self.origin}, {self.unit} {self.positions[row]}"


def in_parts(rows: Iterable[tuple[int, int, _Row]], size: int) -> Iterator[tuple[list[int], list[_Row]]]:
    """Positions and rows, at most `size` at a time, fewer if they are long (rows come with their characters)."""
    positions: list[int] = []
    part: list[_Row] = []
    characters = 0
    for position, length, row in rows:
        positions.append(position)
        part.append(row)
        characters += length
        if len(part) == size or characters > PART_CHARACTERS:
            yield positions, part
            positions, part, characters = [], [], 0
    if part:
        yield positions, part


def refuse_duplicates(path: Path, columns: Sequence[str]) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise UserError(f"{path} has columns that appear twice: {shown(twice)}; rename one of each")


def shown(values: Iterable[Any], limit: int = 8) -> str:
    """Values on one line for a message: quoted, long ones cut, followed by the number of omitted ones."""
    listed = list(values)
    texts = [shorten(clean(repr(value)), 60) for value in listed[:limit]]
    more = len(listed) - limit
    return ", ".join(texts) + (f" and {more} more" if more > 0 else "")
