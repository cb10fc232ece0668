"""The contents of views, independent of where they are shown (terminal, text files, page).

They are headings, words, tables and charts. Every chart can also be read as a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, Generic, TypeVar

from ...albert_core.output.charts import Bar, BarChart, Chart, LineChart, Stack, StackedChart, joined_name, thinned
from ...albert_core.terminal.text import figure, precise
from ...kernels.words import count

Entry = TypeVar("Entry")
Shown = TypeVar("Shown", contravariant=True)

# The most rows of a curve's table. The file that the view names has all values.
MOST_ROWS = 60


@dataclass(frozen=True)
class Column(Generic[Shown]):
    """A table's column: its header, and the text that it shows of an entry.

    numeric: its cells are figures, which stand to the right.
    least_width: a terminal of fewer characters leaves the column out.
    """

    header: str
    cell: Callable[[Shown], str]
    numeric: bool = True
    least_width: int = 0


def word_columns(*headers: str) -> tuple[Column[Sequence[str]], ...]:
    """Columns of entries that are texts already."""
    return tuple(Column(header, itemgetter(place), numeric=False) for place, header in enumerate(headers))


def unmarked(entry: object) -> str:
    del entry
    return ""


@dataclass(frozen=True)
class Table(Generic[Entry]):
    """What each column shows of each entry. The first column heads each row.

    style: how a terminal shows an entry's row: "green", "yellow", "red", "dim" or "". A page marks yellow and red rows.
    """

    caption: str
    columns: Sequence[Column[Entry]]
    entries: Sequence[Entry]
    style: Callable[[Entry], str] = unmarked

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(column.cell(entry) for column in self.columns) for entry in self.entries)

    @property
    def flagged(self) -> set[int]:
        """The rows that need the reader's care."""
        return {place for place, entry in enumerate(self.entries) if self.style(entry) in ("yellow", "red")}

    def without_empty_columns(self) -> Table[Entry]:
        """The table without empty columns."""
        kept = [column for column in self.columns if any(column.cell(entry) for entry in self.entries)]
        return replace(self, columns=kept)


@dataclass(frozen=True)
class Words:
    """A paragraph. style: how a terminal shows it; one with a style must be read before the figures beside it."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Heading:
    """The subject of the blocks below it, and the file they come from."""

    text: str
    source: str = ""


Block = Heading | Words | Table[Any] | Chart


@dataclass(frozen=True)
class Section:
    """A part of a view, with its blocks in order. A `folded` one is closed at first."""

    key: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    folded: bool = False

    @property
    def charts(self) -> list[Chart]:
        return [block for block in self.blocks if isinstance(block, LineChart | BarChart | StackedChart)]

    @property
    def size(self) -> str:
        """The numbers of its charts and tables, in words."""
        tables = sum(isinstance(block, Table) for block in self.blocks)
        return ", ".join(count(n, noun) for n, noun in ((len(self.charts), "chart"), (tables, "table")) if n)


def chart_table(chart: Chart) -> Table[Any]:
    """The figures of a chart. For a long curve, they are evenly spaced points, and the caption says so."""
    if isinstance(chart, LineChart):
        return _points(chart)
    return _bars(chart) if isinstance(chart, BarChart) else _parts(chart)


def _points(chart: LineChart) -> Table[float]:
    """One row per x."""
    curves = [(line.name, {x: precise(y) for x, y in line.points}) for line in chart.lines]
    curves += [
        (band.name, {x: f"{precise(low)} to {precise(high)}" for x, low, high in band.points}) for band in chart.bands
    ]
    every = sorted({x for _, cells in curves for x in cells})
    chosen = thinned(every, MOST_ROWS)
    some = f" ({len(chosen)} of {len(every):,} points)" if len(chosen) < len(every) else ""
    names = chart.x.names

    def looked_up(cells: dict[float, str]) -> Callable[[float], str]:
        return lambda x: cells.get(x, "")

    columns = (
        Column[float](chart.x.label, lambda x: names[int(x)] if names else precise(x), numeric=not names),
        *(Column(name, looked_up(cells)) for name, cells in curves),
    )
    return Table(f"{chart.title}: {chart.y.label}{some}", columns, chosen)


def _bars(chart: BarChart) -> Table[Bar]:
    columns = (
        Column[Bar]("what", lambda bar: bar.name, numeric=False),
        Column[Bar](chart.unit, lambda bar: "" if bar.empty else figure(bar.value)),
        Column[Bar]("95 % interval", lambda bar: bar.interval),
        Column[Bar]("remarks", lambda bar: bar.words, numeric=False),
    )
    return Table(
        f"{chart.title}: {chart.unit}", columns, chart.bars, lambda bar: "red" if bar.hatched or bar.empty else ""
    )


def _parts(chart: StackedChart) -> Table[Stack]:
    def seconds(part: str) -> Callable[[Stack], str]:
        return lambda stack: figure(stack.parts[part]) if part in stack.parts else ""

    columns = (
        Column[Stack]("what", lambda stack: joined_name(stack.name, stack.words), numeric=False),
        *(Column(part, seconds(part)) for part in chart.parts),
        Column[Stack]("sum", lambda stack: figure(stack.total)),
    )
    return Table(f"{chart.title}: {chart.unit}", columns, chart.stacks)
