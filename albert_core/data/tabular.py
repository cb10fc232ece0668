"""Tables of data: named columns, and rows that know their place in a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
            0, as `datasets` counts). They count on from shard to shard.
        shards: The files of a split in several files, each with the number that its positions begin after.
    """

    origin: str
    columns: list[str]
    rows: list[list[Any]]
    positions: Sequence[int]
    unit: str = "line"
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    shards: tuple[tuple[str, int], ...] = ()

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
        there = self.at(self.positions[row])
        return there if self.shards else f"{self.origin}, {there}"

    def at(self, position: int) -> str:
        """A position for messages that name the table: ``line 12``, with the file if there are several."""
        for file, begin in reversed(self.shards):
            if position >= begin:
                return f"{file}, {self.unit} {position - begin}"
        return f"{self.unit} {position}"

    def listed(self, rows: Sequence[int], most: int = 5) -> str:
        """The positions of rows for messages that name the table: ``line 2, 3, ...``."""
        positions = [self.positions[row] for row in rows[:most]]
        places = "; ".join(map(self.at, positions)) if self.shards else f"{self.unit} {', '.join(map(str, positions))}"
        return places + (", ..." if len(rows) > most else "")


def joined(tables: Sequence[Table]) -> Table:
    """Tables below each other, under the columns of all of them. Everything else is the first one's."""
    columns = list(dict.fromkeys(name for table in tables for name in table.columns))
    rows = [row for table in tables for row in table.aligned(columns)]
    positions = [position for table in tables for position in table.positions]
    return replace(tables[0], columns=columns, rows=rows, positions=positions)


def joined_shards(tables: Sequence[Table]) -> Table:
    """The files of a split as one table, whose rows know their files.

    Raises:
        UserError: The ids in a column of classes have other names in one file than in another.
    """
    first, begin = tables[0], 0
    if len(tables) == 1:
        return first
    shards: list[tuple[str, int]] = []
    counted: list[Table] = []
    for table in tables:
        if table.class_names != first.class_names:
            raise UserError(
                f"{table.origin} has other names of classes than {first.origin}; write all files of a split alike"
            )
        positions = [begin + position for position in table.positions]
        shards.append((table.origin, begin))
        counted.append(replace(table, positions=positions))
        begin = positions[-1] + 1
    return replace(joined(counted), origin=f"{first.origin} ({len(tables)} shards)", shards=tuple(shards))


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
