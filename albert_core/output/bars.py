"""Horizontal bars and stacked bars: one row each, with its name, its words and its figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..terminal.text import figure
from . import styles
from .canvas import BESIDE, FOOT, Canvas, fill_of, plain_axes, pointed, set_up_axis
from .charts import Axis, BarChart, Fill, StackedChart, joined_name
from .lettering import LINE, text_width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THICKNESS, GAP = 16, 12


def rows_height(chart: BarChart | StackedChart, width: float) -> float:
    """The height of the bars with their axis in pixels."""
    room = _name_width(chart, width)
    return sum(_row_height(row, room, width) for row in _rows(chart)) + FOOT


@dataclass(frozen=True)
class _Part:
    """A bar, or a part of one: where it begins and ends, and its fill."""

    start: float
    end: float
    fill: Fill
    said: str


@dataclass(frozen=True)
class _Row:
    """What is drawn and written in a row of a bar chart. `alarm`: its words say that it is no result."""

    name: str
    words: str
    value: str
    parts: tuple[_Part, ...]
    interval: tuple[float, float] | None = None
    alarm: bool = False

    @property
    def end(self) -> float:
        return max((*(part.end for part in self.parts), *(self.interval or ())), default=0.0)

    def lines(self, room: float, width: float) -> tuple[list[str], list[str]]:
        """The name and its small print, as they stand beside or above the bar."""
        words = self.words if width >= BESIDE else joined_name(self.value, self.words)
        return wrapped(self.name, room, 3), wrapped(words, room, 3)


def _rows(chart: BarChart | StackedChart) -> list[_Row]:
    if isinstance(chart, BarChart):
        return [
            _Row(bar.name, bar.words, bar.figures, (), alarm=True)
            if bar.empty
            else _Row(
                bar.name,
                bar.words,
                bar.figures,
                (_Part(0, bar.value, Fill(bar.name, bar.style, bar.hatched), joined_name(bar.figures, bar.words)),),
                (bar.low, bar.high),
                bar.hatched,
            )
            for bar in chart.bars
        ]
    rows = []
    for stack in chart.stacks:
        parts, start = [], 0.0
        for style, part in enumerate(chart.parts):
            value = stack.parts.get(part, 0.0)
            if value > 0:
                parts.append(_Part(start, start + value, Fill(part, style), f"{part} {figure(value)}"))
                start += value
        rows.append(_Row(stack.name, stack.words, figure(stack.total), tuple(parts)))
    return rows


def _name_width(chart: BarChart | StackedChart, width: float) -> float:
    """Pixels available for names."""
    names = [text for row in _rows(chart) for text in (row.name, row.words)]
    return min(max(map(text_width, names)), 0.36 * width) if width >= BESIDE else width


def _row_height(row: _Row, room: float, width: float) -> float:
    text = LINE * sum(map(len, row.lines(room, width)))
    return GAP + (max(text, THICKNESS) if width >= BESIDE else text + THICKNESS + 2)


def draw_rows(canvas: Canvas, chart: BarChart | StackedChart, top: float, bottom: float) -> None:
    """Draws all bars, one below the other. Names stand to their left if there is room, else above them."""
    rows, width = _rows(chart), canvas.width
    beside = width >= BESIDE
    room = _name_width(chart, width)
    left = room + 16 if beside else 4
    right = width - max(text_width(row.value) for row in rows) - 16 if beside else width - 28
    axes = canvas.axes(left, top, right, bottom - FOOT)
    axes.set_xlim(0, max(row.end for row in rows) * 1.02 or 1.0)
    axes.set_ylim(bottom - FOOT, top)
    axes.set_yticks([])
    y = top
    for row in rows:
        y += GAP / 2
        name, words = row.lines(room, width)
        for place, line in enumerate((*name, *words)):
            colour = styles.INK if place < len(name) else styles.ALARM if row.alarm else styles.QUIET
            canvas.write(0, y + LINE * (place + 1) - 5, line, color=colour)
        if beside:
            canvas.write(width, y + LINE - 5, row.value, ha="right")
        _draw_row(axes, row, y + THICKNESS / 2 + (1 if beside else LINE * (len(name) + len(words)) + 2))
        y += _row_height(row, room, width) - GAP / 2
    set_up_axis(axes, "x", Axis(chart.unit), [0.5], int((right - left) // 90))
    axes.grid(True, axis="x", color=styles.GRID, linewidth=1)
    plain_axes(axes, chart.unit)


def _draw_row(axes: Axes, row: _Row, middle: float) -> None:
    kind = "part" if row.interval is None else "bar"
    for part in row.parts:
        said = pointed(kind, f"{row.name}: {part.said}")
        length = part.end - part.start
        axes.barh(middle, length, left=part.start, height=THICKNESS, gid=said, **fill_of(part.fill))
    if row.interval is not None:
        value, (low, high) = row.parts[0].end, row.interval
        reach = [[max(0.0, value - low)], [max(0.0, high - value)]]
        for colour, width in ((styles.PAGE, 4.0), (styles.INK, 1.5)):
            axes.errorbar(value, middle, xerr=reach, color=colour, fmt="none", capsize=4, linewidth=width)
