"""Horizontal bars with their intervals, and bars of stacked parts, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ....albert_core.output.charts import Bar, BarChart, Stack, StackedChart, joined_name
from ....albert_core.terminal.text import number
from . import styles
from .scale import Scale, scale_over
from .svg import LINE, Element, Patterns, axis_of_values, finished, hue, lines_of, node, picture, text, widest

THICKNESS = 18.0
GAP = 14.0


@dataclass(frozen=True)
class _Row:
    """What is written beside a bar. `alarm`: its words say that it is no result."""

    name: str
    words: str
    value: str
    alarm: bool = False


def draw_bars(chart: BarChart, width: float, key: str) -> str:
    """The chart, `width` pixels wide. `key` starts the names inside it, which no other drawing of the page has."""
    svg = picture(key, chart.title, chart.words, width)
    patterns = Patterns(svg, key)
    rows = [_Row(bar.name, bar.words, bar.figures, bar.hatched or bar.empty) for bar in chart.bars]
    limit = max(max(bar.value, bar.high) for bar in chart.bars if not bar.empty)

    def draw(index: int, scale: Scale, top: float) -> None:
        _bar(svg, chart.bars[index], scale, top, patterns)

    return _rows(svg, rows, limit, chart.unit, width, draw)


def draw_stacks(chart: StackedChart, width: float, key: str) -> str:
    """The chart, `width` pixels wide. `key` starts the names inside it, which no other drawing of the page has."""
    svg = picture(key, chart.title, chart.words, width)
    rows = [_Row(stack.name, stack.words, number(stack.total)) for stack in chart.stacks]
    limit = max(stack.total for stack in chart.stacks)

    def draw(index: int, scale: Scale, top: float) -> None:
        _stack(svg, chart.stacks[index], chart.parts, scale, top)

    return _rows(svg, rows, limit, chart.unit, width, draw)


def _rows(
    svg: Element,
    rows: Sequence[_Row],
    limit: float,
    unit: str,
    width: float,
    draw: Callable[[int, Scale, float], None],
) -> str:
    """All bars under each other: names to their left where there is room, above them where there is none."""
    beside = width >= 700
    value_width = widest([row.value for row in rows]) + 16 if beside else 0.0
    name_width = min(widest([row.name for row in rows]) + 20, 0.36 * width) if beside else 0.0
    left, right = (name_width, width - value_width) if beside else (2.0, width - 4)
    scale = scale_over([limit], left, right, zero=True)
    # The axis comes first in the drawing, for its grid lies under the bars: heights are known before.
    heights = [_height(row, name_width - 16 if beside else width, beside) for row in rows]
    end = axis_of_values(svg, scale, 4.0, sum(heights), unit, (left + right) / 2, width)
    top = 0.0
    for index, row in enumerate(rows):
        bar_top = _written(svg, row, top, name_width - 16 if beside else width, width, beside)
        draw(index, scale, bar_top)
        top += heights[index]
    return finished(svg, width, end)


def _lines(row: _Row, room: float, beside: bool) -> tuple[list[str], list[str]]:
    """A row's name and its smaller print."""
    return lines_of(row.name, room), lines_of(row.words if beside else joined_name(row.value, row.words), room)


def _height(row: _Row, room: float, beside: bool) -> float:
    name, words = _lines(row, room, beside)
    text_height = LINE * (len(name) + len(words))
    return max(text_height, THICKNESS) + GAP if beside else text_height + 4 + THICKNESS + GAP


def _written(svg: Element, row: _Row, top: float, room: float, width: float, beside: bool) -> float:
    """Writes what stands beside or above a bar. Returns where the bar begins."""
    name, words = _lines(row, room, beside)
    for place, line in enumerate((*name, *words)):
        class_ = "name" if place < len(name) else "alarm tick" if row.alarm else "tick"
        text(svg, 0, top + GAP / 2 + LINE * (place + 1) - 5, line, class_=class_)
    if not beside:
        return top + GAP / 2 + LINE * (len(name) + len(words)) + 4
    text(svg, width, top + GAP / 2 + LINE - 5, row.value, "end", "value")
    return top + GAP / 2


def _bar(svg: Element, bar: Bar, scale: Scale, top: float, patterns: Patterns) -> None:
    if bar.empty:
        return
    rect = node(
        svg,
        "rect",
        x=scale.start,
        y=top,
        width=max(1.0, scale(bar.value) - scale.start),
        height=THICKNESS,
        fill=patterns.fill(bar.style, bar.hatched),
        fill_opacity=styles.shade(bar.style),
        class_=f"mark bar {hue(bar.style)}{' hatched' if bar.hatched else ''}",
    )
    node(rect, "title", joined_name(f"{bar.name}: {bar.figures}", bar.words))
    middle, low, high = top + THICKNESS / 2, scale(bar.low), scale(bar.high)
    whisker = f"M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 5}v10M{high:.1f} {middle - 5}v10"
    for class_ in ("halo", "whisker ink"):
        node(svg, "path", d=whisker, class_=class_)


def _stack(svg: Element, stack: Stack, parts: Sequence[str], scale: Scale, top: float) -> None:
    done = 0.0
    for style, part in enumerate(parts):
        value = stack.parts.get(part, 0.0)
        if value <= 0:
            continue
        rect = node(
            svg,
            "rect",
            x=scale(done),
            y=top,
            width=scale(done + value) - scale(done),
            height=THICKNESS,
            fill="currentColor",
            fill_opacity=styles.shade(style),
            class_=f"mark part {hue(style)}",
        )
        node(rect, "title", f"{stack.name}, {part}: {number(value)}")
        done += value
