"""The chart of a run's evaluations: in the terminal, as a page of its own, and as PNG."""

from __future__ import annotations

import html
import math
from itertools import pairwise
from typing import Any

from ..runs.files import write_bytes, write_text
from ..runs.folder import RunFolder
from ..runs.history import evaluations
from ..terminal.text import clean, precise
from . import styles
from .charts import Axis, Line, LineChart
from .draw import HALF, draw_png, draw_svg

MARKS = "*o+x"
STYLE = (
    "body{font:16px/1.5 sans-serif;margin:2em;background:var(--page);color:var(--ink)}"
    "svg{display:block;max-width:100%;height:auto}svg text{font-size:13px}td,th{padding:2px 12px;text-align:right}"
)


def evaluation_chart(rows: list[dict[str, Any]], metrics: list[str], title: str) -> LineChart:
    """The `metrics` of a run's evaluations over its epochs, or over its steps if an epoch has several."""
    epochs = [row["epoch"] for row in rows]
    axis = "epoch" if len(set(epochs)) == len(epochs) else "step"

    def line(name: str, style: int) -> Line:
        values = ((float(row[axis]), row[name]) for row in rows)
        return Line(name, tuple((x, value if math.isfinite(value) else None) for x, value in values), style)

    lines = tuple(line(name, style) for style, name in enumerate(metrics))
    return LineChart("chart", title, "", Axis(axis), Axis(", ".join(metrics)), lines)


def write_charts(run: RunFolder, metrics: list[str], title: str, *, png: bool) -> None:
    """Draws the run's evaluations so far as chart.html, and with `png` as chart.png."""
    rows = evaluations(run) if metrics else []
    if not rows:
        return
    chart = evaluation_chart(rows, metrics, title)
    write_text(run.path / "chart.html", as_page(chart))
    if png:
        write_bytes(run.path / "chart.png", draw_png(chart))


def as_page(chart: LineChart) -> str:
    """A page with the chart and a table of its figures."""
    head = "".join(f"<th>{_shown(name)}</th>" for name in (chart.x.label, *(line.name for line in chart.lines)))
    body = "".join(
        f"<tr><td>{precise(x)}</td>{''.join(f'<td>{_value(line, place)}</td>' for line in chart.lines)}</tr>"
        for place, (x, _) in enumerate(chart.lines[0].points)
    )
    title = _shown(chart.title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{styles.variables()}\n{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        f"{draw_svg(chart, HALF, chart.key)}\n<table><tr>{head}</tr>{body}</table>\n</body></html>\n"
    )


def _value(line: Line, place: int) -> str:
    value = line.points[place][1]
    return "not finite" if value is None else f"{value:.4f}"


def as_text(chart: LineChart, width: int = 60, height: int = 12) -> str:
    """The chart in plain ASCII, for a terminal."""
    places = [x for x, _ in chart.lines[0].points]
    values = [value for line in chart.lines for _, value in line.points if value is not None] or [0.0, 1.0]
    first, last, low, high = min(places), max(places), min(values), max(values)
    # Equal values still need an extent.
    low, high = (low, high) if high - low >= 1e-3 else (low - 5e-4, low + 5e-4)
    canvas = [[" "] * width for _ in range(height)]

    def column(place: float) -> int:
        return width // 2 if last == first else round((place - first) / (last - first) * (width - 1))

    def row(value: float) -> int:
        return round((high - value) / (high - low) * (height - 1))

    marks = MARKS * len(chart.lines)
    drawn = [
        (mark, [(column(x), row(value)) for x, value in line.points if value is not None])
        for line, mark in zip(chart.lines, marks, strict=False)
    ]
    # Marks are drawn after the lines, so that none is hidden.
    for _, points in drawn:
        for (x0, y0), (x1, y1) in pairwise(points):
            for x in range(x0 + 1, x1):
                canvas[round(y0 + (y1 - y0) * (x - x0) / (x1 - x0))][x] = "."
    for mark, points in drawn:
        for x, y in points:
            canvas[y][x] = mark
    lines = [
        f"{high - (high - low) * i / (height - 1):8.4f} |{''.join(cells).rstrip()}" for i, cells in enumerate(canvas)
    ]
    legend = "   ".join(f"{mark} {line.name}" for line, mark in zip(chart.lines, marks, strict=False))
    start, end = precise(first), precise(last)
    ends = start if first == last else f"{start}{end:>{width - len(start)}}"
    return "\n".join(
        [chart.title, *lines, " " * 9 + "+" + "-" * width, " " * 10 + ends, f"{'':10}{chart.x.label}   {legend}"]
    )


def _shown(text: str) -> str:
    """External text, such as a model's name, in HTML."""
    return html.escape(clean(text))
