"""Curves, bands and single points over two axes, as SVG."""

from __future__ import annotations

from ....albert_core.output.charts import Band, Line, LineChart, Point
from ....albert_core.terminal.text import precise
from ..blocks import thinned
from .scale import TICK_GAP, Scale, placed, scale_over
from .styles import dash
from .svg import (
    LINE,
    SIZE,
    TICK_DROP,
    Element,
    Frame,
    axis_label,
    axis_of_values,
    finished,
    hue,
    mark,
    node,
    picture,
    side_ticks,
    text,
    widest,
)

# A curve of more points than this is drawn by the lowest and the highest of each of its stretches.
MOST_POINTS = 600
MARKS_OF_LONG_CURVES = 10
HEIGHTS = {True: 240.0, False: 320.0}


def draw_lines(chart: LineChart, width: float, key: str) -> str:
    """The chart, `width` pixels wide. `key` starts the names inside it, which no other drawing of the page has."""
    svg = picture(key, chart.title, chart.words, width)
    values = _values(chart, "y")
    zero = chart.y.log and any(value <= 0 for value in values)
    top, bottom = LINE + 12, LINE + 12 + HEIGHTS[width < 700]
    y = scale_over(values, bottom, top, chart.y.log)
    ticks = side_ticks(y, 6, zero)
    left = widest([words for _, words in ticks]) + 12
    text(svg, 0, LINE - 4, chart.y.label, class_="axis")
    for tick, words in ticks:
        node(svg, "line", x1=left, x2=width, y1=y(tick), y2=y(tick), class_="grid")
        text(svg, left - 8, y(tick) + SIZE / 3, words, "end", "tick")
    frame = Frame(_across(chart, left, width), y)
    if chart.x.names:
        end = _named_axis(svg, chart, frame.x, bottom, (left + width) / 2, width)
    else:
        end = axis_of_values(svg, frame.x, top, bottom, chart.x.label, (left + width) / 2, width)
    for band in chart.bands:
        _band(svg, band, frame)
    for line in chart.lines:
        _line(svg, line, frame)
    return finished(svg, width, end)


def _values(chart: LineChart, axis: str) -> list[float]:
    """All that the axis must hold."""
    if axis == "x":
        return [x for line in chart.lines for x, _ in line.points] + [
            x for band in chart.bands for x, *_ in band.points
        ]
    values = [value for line in chart.lines for _, value in line.points if value is not None]
    values += [value for line in chart.lines for value in (*line.lows, *line.highs)]
    return values + [value for band in chart.bands for _, *bounds in band.points for value in bounds]


def _across(chart: LineChart, left: float, width: float) -> Scale:
    start, end = left + 8, width - 16
    if chart.x.names:
        return Scale(0.0, max(1.0, len(chart.x.names) - 1.0), start, end)
    values = _values(chart, "x")
    if chart.x.log:
        return scale_over(values, start, end, log=True)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return Scale(low, high if high > low else low + 1, start, end)


def _named_axis(svg: Element, chart: LineChart, scale: Scale, bottom: float, middle: float, width: float) -> float:
    """The names that have room, the first always."""
    free = -TICK_GAP
    for place, name in enumerate(chart.x.names):
        tick = placed(scale(place), name, SIZE, width)
        if tick.left >= free + TICK_GAP:
            text(svg, tick.middle, bottom + TICK_DROP, name, "middle", "tick")
            free = tick.right
    return axis_label(svg, chart.x.label, middle, bottom)


def _band(svg: Element, band: Band, frame: Frame) -> None:
    chosen = set(thinned([x for x, *_ in band.points], MOST_POINTS))
    points = [(frame.x(x), frame.y(low), frame.y(high)) for x, low, high in band.points if x in chosen]
    upper = [f"{x:.1f} {high:.1f}" for x, _, high in points]
    lower = [f"{x:.1f} {low:.1f}" for x, low, _ in points]
    node(svg, "path", d=f"M{'L'.join([*upper, *reversed(lower)])}z", class_=f"band {hue(band.style)}")
    for edge in (upper, lower):
        node(svg, "path", d=f"M{'L'.join(edge)}", class_=f"edge {hue(band.style)}")


def _line(svg: Element, line: Line, frame: Frame) -> None:
    points = [(x, value) for x, value in line.points if value is not None]
    drawn = extremes(line.points, MOST_POINTS)
    path, joined = "", False
    for x, value in drawn:
        if value is not None:
            path += f"{'L' if joined else 'M'}{frame.x(x):.1f} {frame.y(value):.1f}"
        joined = value is not None
    if len(points) > 1:
        class_ = f"line {hue(line.style)}{' plain' if line.plain else ''}"
        node(svg, "path", d=path, class_=class_, stroke_dasharray=dash(line.style))
    if not line.marked:
        return
    few = len(points) <= 40
    for index, (x, value) in enumerate(points if few else _some(points)):
        if index < len(line.lows):
            _whisker(svg, frame.x(x), frame.y(line.lows[index]), frame.y(line.highs[index]), line.style)
        mark(svg, frame.x(x), frame.y(value), line.style, f"{line.name}: {precise(x)}, {precise(value)}", line.invalid)


def _whisker(svg: Element, x: float, low: float, high: float, style: int) -> None:
    node(
        svg,
        "path",
        d=f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8",
        class_=f"whisker {hue(style)}",
    )


def _some(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of a long curve that carry its marker, so that it is known by more than its colour."""
    last = len(points) - 1
    return [points[round(place * last / (MARKS_OF_LONG_CURVES - 1))] for place in range(MARKS_OF_LONG_CURVES)]


def extremes(points: tuple[Point, ...], most: int) -> list[Point]:
    """At most about `most` points: of each stretch of a long curve the lowest, the highest and the gaps' first."""
    if len(points) <= most:
        return list(points)
    stretch = -(-len(points) * 2 // most)
    kept: list[Point] = [points[0]]
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        known = [(value, place) for place, (_, value) in enumerate(part) if value is not None]
        gaps = [place for place, (_, value) in enumerate(part) if value is None][:1]
        places = {min(known)[1], max(known)[1]} if known else set()
        kept += [part[place] for place in sorted(places | set(gaps))]
    return [*kept, points[-1]]
