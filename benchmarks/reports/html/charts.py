"""What a chart and a table say, apart from how they are drawn: the page (SVG) and the PNG files draw the same objects.

Every chart can be read as a table, too. A style is a number: whoever draws turns it into a colour, a dash, a marker and
a shade, so that no two series differ by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..terminal import figure

# Rows of a series' table: a reader looks up values in it; all of them are in the file that the page names.
MOST_ROWS = 60
REFERENCE = -1
Point = tuple[float, float | None]


@dataclass(frozen=True)
class Column:
    """A table's column: its header, and whether its cells are figures, which stand to the right."""

    header: str
    numeric: bool = True


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
class Axis:
    """`names`: what stands at 0, 1, 2, ... of an axis that has no unit. A logarithmic axis shows a zero at its foot."""

    label: str
    log: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """Points joined in order; a point without a value is a gap. A line that isn't `marked` is a limit, no data.

    `lows` and `highs`: the interval of each point, where it has one. `plain`: drawn thin. `invalid`: drawn hollow.
    """

    name: str
    points: tuple[Point, ...]
    style: int
    marked: bool = True
    plain: bool = False
    invalid: bool = False
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Band:
    """An area between two curves: (x, low, high)."""

    name: str
    points: tuple[tuple[float, float, float], ...]
    style: int


@dataclass(frozen=True)
class LineChart:
    """Curves over an axis. `key` names its file and its place on the page; `half`: two of them stand side by side."""

    key: str
    title: str
    words: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    bands: tuple[Band, ...] = ()
    half: bool = False

    def table(self) -> Table:
        """A row an x; where there are many, evenly chosen ones, the first and the last among them."""
        curves = [dict(line.points) for line in self.lines]
        areas = [{x: (low, high) for x, low, high in band.points} for band in self.bands]
        every = sorted({x for points in curves for x in points} | {x for area in areas for x in area})
        chosen = thinned(every, MOST_ROWS)
        some = f" ({len(chosen)} of {len(every):,} points)" if len(chosen) < len(every) else ""
        rows = []
        for x in chosen:
            cells = [self.x.names[int(x)] if self.x.names else precise(x)]
            cells += [precise(points.get(x)) for points in curves]
            cells += [f"{precise(area[x][0])} to {precise(area[x][1])}" if x in area else "" for area in areas]
            rows.append(tuple(cells))
        headers = [Column(self.x.label, numeric=not self.x.names)]
        headers += [Column(name) for name in [line.name for line in self.lines] + [band.name for band in self.bands]]
        return Table(f"{self.title}: {self.y.label}{some}", tuple(headers), tuple(rows))


@dataclass(frozen=True)
class Fill:
    """How a bar or a part of one is filled, and what that means."""

    name: str
    style: int
    hatched: bool = False


@dataclass(frozen=True)
class Bar:
    """One value with its interval. `words`: what qualifies it, said beside its name.

    `hatched`: it is no result. `empty`: there is no value at all, only the name and why.
    """

    name: str
    value: float = 0.0
    low: float = 0.0
    high: float = 0.0
    style: int = 0
    words: str = ""
    hatched: bool = False
    empty: bool = False

    @property
    def interval(self) -> str:
        return "" if self.empty else f"{number(self.low)} to {number(self.high)}"

    @property
    def figures(self) -> str:
        return "no figures" if self.empty else f"{number(self.value)} ({self.interval})"


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars from zero. `groups`: what each style, from 0 on, stands for."""

    key: str
    title: str
    words: str
    unit: str
    bars: tuple[Bar, ...]
    groups: tuple[str, ...] = ()
    half: bool = False

    def legend(self) -> list[Fill]:
        """What the fills mean: nothing where all bars are alike."""
        hatched = sorted({bar.style for bar in self.bars if bar.hatched})
        fills = [Fill(name, style) for style, name in enumerate(self.groups)] if len(self.groups) > 1 else []
        return fills + [Fill("hatched: invalid, to be used for nothing", style, True) for style in hatched[:1]]

    def table(self) -> Table:
        columns = (Column("what", numeric=False), Column(self.unit), Column("95 % interval"), Column("remarks", False))
        rows = tuple((bar.name, "" if bar.empty else number(bar.value), bar.interval, bar.words) for bar in self.bars)
        flagged = frozenset(index for index, bar in enumerate(self.bars) if bar.hatched or bar.empty)
        return Table(f"{self.title}: {self.unit}", columns, rows, flagged)


@dataclass(frozen=True)
class Stack:
    """One bar of several parts, by the names of the chart's parts."""

    name: str
    parts: dict[str, float]
    words: str = ""

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class StackedChart:
    """Horizontal bars of parts that add up."""

    key: str
    title: str
    words: str
    unit: str
    parts: tuple[str, ...]
    stacks: tuple[Stack, ...]
    half: bool = False

    def legend(self) -> list[Fill]:
        """The parts, in the order in which they lie in every bar."""
        return [Fill(part, style) for style, part in enumerate(self.parts)]

    def table(self) -> Table:
        columns = (Column("what", numeric=False), *(Column(part) for part in self.parts), Column("sum"))
        rows = tuple(
            (
                joined_name(stack.name, stack.words),
                *(number(stack.parts[part]) if part in stack.parts else "" for part in self.parts),
                number(stack.total),
            )
            for stack in self.stacks
        )
        return Table(f"{self.title}: {self.unit}", columns, rows)


Chart = LineChart | BarChart | StackedChart


@dataclass(frozen=True)
class Words:
    """A paragraph; `strong`: it must be read before the figures beside it."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Heading:
    """What a part of a section is about, and the file it comes from."""

    text: str
    source: str = ""


Block = Heading | Words | Table | Chart


@dataclass(frozen=True)
class Section:
    """A part of the page: what it answers, and its blocks in order."""

    key: str
    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def charts(self) -> list[Chart]:
        return [block for block in self.blocks if isinstance(block, LineChart | BarChart | StackedChart)]


def number(value: float) -> str:
    """Three significant digits and thousands apart, as every table of this project has them; 0 is exact."""
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else figure(value)


def thinned(values: Sequence[float], most: int) -> list[float]:
    """At most `most` of the values, evenly chosen, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def joined_name(name: str, words: str) -> str:
    return f"{name} ({words})" if words else name


def precise(value: float | None) -> str:
    """Six significant digits: losses differ in the fifth. Empty where there is no value."""
    return "" if value is None else f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.6g}"
