"""What a view says, apart from where it is shown (terminal, text files, page): headings, words, tables and charts.

Every chart can be read as a table, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...albert_core.output.charts import BarChart, Chart, LineChart, StackedChart, joined_name, thinned
from ...albert_core.terminal.text import number, precise
from ...kernels.words import count

# Rows of a curve's table: a reader looks up values in it; all of them are in the file that the view names.
MOST_ROWS = 60


@dataclass(frozen=True)
class Column:
    """A table's column: its header, and whether its cells are figures, which stand to the right."""

    header: str
    numeric: bool = True


def word_columns(*headers: str) -> tuple[Column, ...]:
    return tuple(Column(header, numeric=False) for header in headers)


def figure_columns(*headers: str) -> tuple[Column, ...]:
    return tuple(Column(header) for header in headers)


@dataclass(frozen=True)
class Table:
    """Cells as texts. The first column heads each row; rows named in `flagged` (by index) need the reader's care."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    flagged: frozenset[int] = frozenset()

    def without_empty_columns(self) -> Table:
        """The table without the columns in which no row says anything."""
        kept = [place for place in range(len(self.columns)) if any(row[place] for row in self.rows)]
        columns = tuple(self.columns[place] for place in kept)
        rows = tuple(tuple(row[place] for place in kept) for row in self.rows)
        return Table(self.caption, columns, rows, self.flagged)


@dataclass(frozen=True)
class Words:
    """A paragraph; `strong`: it must be read before the figures beside it."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Heading:
    """What the blocks below it are about, and the file they come from."""

    text: str
    source: str = ""


Block = Heading | Words | Table | Chart


@dataclass(frozen=True)
class Section:
    """A part of a view: what it answers, and its blocks in order. `folded`: a reader opens it."""

    key: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    folded: bool = False

    @property
    def charts(self) -> list[Chart]:
        return [block for block in self.blocks if isinstance(block, LineChart | BarChart | StackedChart)]

    @property
    def size(self) -> str:
        """How many charts and tables it holds, in words."""
        tables = sum(isinstance(block, Table) for block in self.blocks)
        return ", ".join(count(n, noun) for n, noun in ((len(self.charts), "chart"), (tables, "table")) if n)


def chart_table(chart: Chart) -> Table:
    """The figures of a chart. Of a long curve, evenly chosen points, and the caption says so."""
    if isinstance(chart, LineChart):
        return _points(chart)
    return _bars(chart) if isinstance(chart, BarChart) else _parts(chart)


def _points(chart: LineChart) -> Table:
    """A row an x."""
    curves = [dict(line.points) for line in chart.lines]
    areas = [{x: (low, high) for x, low, high in band.points} for band in chart.bands]
    every = sorted({x for points in curves for x in points} | {x for area in areas for x in area})
    chosen = thinned(every, MOST_ROWS)
    some = f" ({len(chosen)} of {len(every):,} points)" if len(chosen) < len(every) else ""
    rows = []
    for x in chosen:
        cells = [chart.x.names[int(x)] if chart.x.names else precise(x)]
        cells += [precise(points.get(x)) for points in curves]
        cells += [f"{precise(area[x][0])} to {precise(area[x][1])}" if x in area else "" for area in areas]
        rows.append(tuple(cells))
    names = (*(line.name for line in chart.lines), *(band.name for band in chart.bands))
    columns = (Column(chart.x.label, numeric=not chart.x.names), *figure_columns(*names))
    return Table(f"{chart.title}: {chart.y.label}{some}", columns, tuple(rows))


def _bars(chart: BarChart) -> Table:
    columns = (*word_columns("what"), *figure_columns(chart.unit, "95 % interval"), *word_columns("remarks"))
    rows = tuple((bar.name, "" if bar.empty else number(bar.value), bar.interval, bar.words) for bar in chart.bars)
    flagged = frozenset(index for index, bar in enumerate(chart.bars) if bar.hatched or bar.empty)
    return Table(f"{chart.title}: {chart.unit}", columns, rows, flagged)


def _parts(chart: StackedChart) -> Table:
    columns = (*word_columns("what"), *figure_columns(*chart.parts, "sum"))
    rows = tuple(
        (
            joined_name(stack.name, stack.words),
            *(number(stack.parts[part]) if part in stack.parts else "" for part in chart.parts),
            number(stack.total),
        )
        for stack in chart.stacks
    )
    return Table(f"{chart.title}: {chart.unit}", columns, rows)
