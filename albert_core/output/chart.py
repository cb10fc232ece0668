"""Line charts of a run's evaluations: in the terminal, as a page with inline SVG, and as PNG (extra `plots`)."""

from __future__ import annotations

import html
import importlib.util
import logging
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...kernels.install import install_hint
from ..runs.files import write_text, written
from ..runs.folder import RunFolder
from ..runs.history import evaluations
from ..terminal.text import clean

log = logging.getLogger("isotrain")

# Okabe and Ito's colours, which people who see colours differently tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
MARKS = "*o+x"

_WIDTH, _HEIGHT = 680, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 150, 56, 46


@dataclass(frozen=True)
class Chart:
    """Lines over common places: `places[i]` is named `ticks[i]`, and `lines[name][i]` is the value there.

    `title` has one line, or two: names of data sets and models may be long paths.
    """

    title: str
    axis: str
    places: list[float]
    ticks: list[str]
    lines: dict[str, list[float]]

    @property
    def limits(self) -> tuple[float, float, float]:
        """The lowest and highest value that the value axis shows, and the step of its grid: 1, 2 or 5 times 10^n."""
        values = [value for line in self.lines.values() for value in line if math.isfinite(value)] or [0.0, 1.0]
        span = max(max(values) - min(values), 1e-3)
        step = next(
            size
            for exponent in range(-6, 12)
            for size in (10.0**exponent, 2 * 10.0**exponent, 5 * 10.0**exponent)
            if size >= span / 6
        )
        return math.floor(min(values) / step) * step, math.ceil(max(values) / step + 1e-9) * step, step


def evaluation_chart(rows: list[dict[str, Any]], metrics: list[str], title: str) -> Chart:
    """The `metrics` of a run's evaluations over its epochs, or over its steps where an epoch has several."""
    epochs = [row["epoch"] for row in rows]
    axis = "epoch" if len(set(epochs)) == len(epochs) else "step"
    return Chart(
        title=title,
        axis=axis,
        places=[float(row["step"]) for row in rows],
        ticks=[str(row[axis]) for row in rows],
        lines={name: [row[name] for row in rows] for name in metrics},
    )


def write_charts(run: RunFolder, metrics: list[str], title: str, *, png: bool) -> None:
    """Draws the run's evaluations so far into chart.html, and into chart.png where that is asked for and possible."""
    rows = evaluations(run) if metrics else []
    if not rows:
        return
    chart = evaluation_chart(rows, metrics, title)
    write_text(run.path / "chart.html", as_page(chart))
    if not png:
        return
    if importlib.util.find_spec("matplotlib") is None:
        log.info("no chart.png, for matplotlib is not installed: %s", install_hint("plots"))
        return
    write_png(chart, run.path / "chart.png")


def as_page(chart: Chart) -> str:
    """A page of its own that holds the chart, and the figures as a table."""
    head = "".join(f"<th>{_shown(name)}</th>" for name in (chart.axis, *chart.lines))
    body = "".join(
        f"<tr><td>{_shown(tick)}</td>" + "".join(f"<td>{line[i]:.4f}</td>" for line in chart.lines.values()) + "</tr>"
        for i, tick in enumerate(chart.ticks)
    )
    title = _shown(", ".join(chart.title.splitlines()))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        "<style>body{font:14px sans-serif;margin:2em}td,th{padding:2px 12px;text-align:right}</style></head><body>\n"
        f"{as_svg(chart)}\n<table><tr>{head}</tr>{body}</table>\n</body></html>\n"
    )


def as_svg(chart: Chart) -> str:
    """The chart as one SVG element, readable without a style sheet or a script."""
    low, high, step = chart.limits
    first, last = min(chart.places), max(chart.places)

    def x(place: float) -> float:
        share = 0.5 if last == first else (place - first) / (last - first)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(12, 20 + 18 * number, line) for number, line in enumerate(chart.title.splitlines())]
    parts.append(_text((x(first) + x(last)) / 2, _HEIGHT - 8, chart.axis, "middle"))
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        parts.append(f'<path d="M{_LEFT} {y(value):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 8, y(value) + 4, f"{value:g}" if abs(value) > 1e-12 else "0", "end"))
    for i in _thinned(len(chart.ticks)):
        parts.append(_text(x(chart.places[i]), _HEIGHT - _BOTTOM + 18, chart.ticks[i], "middle"))
    ends = []
    for (name, line), colour in zip(chart.lines.items(), COLOURS * len(chart.lines), strict=False):
        points = [(x(p), y(v), v) for p, v in zip(chart.places, line, strict=True) if math.isfinite(v)]
        if not points:
            continue
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for px, py, value in points:
            said = f"<title>{_shown(name)} {value:.4f}</title>"
            parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}">{said}</circle>')
        ends.append((points[-1][1] + 4, points[-1][0] + 10, f"{name} {points[-1][2]:.4f}", colour))
    lowest = 0.0
    for wanted, end_x, said, colour in sorted(ends):
        # Lines that end close together keep their names apart.
        lowest = max(wanted, lowest + 14)
        parts.append(_text(end_x, lowest, said, colour=colour))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'role="img" font-family="sans-serif">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#333") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="12"'
    return f"<text {where}>{_shown(text)}</text>"


def _thinned(count: int, most: int = 12) -> list[int]:
    """Which of `count` ticks have room for their names; the last always has."""
    every = -(-count // most)
    return sorted({*range(count - 1, -1, -every)})


def as_text(chart: Chart, width: int = 60, height: int = 12) -> str:
    """The chart in plain ASCII, for a terminal."""
    low, high, _ = chart.limits
    first, last = min(chart.places), max(chart.places)
    canvas = [[" "] * width for _ in range(height)]

    def column(place: float) -> int:
        return width // 2 if last == first else round((place - first) / (last - first) * (width - 1))

    def row(value: float) -> int:
        return round((high - value) / (high - low) * (height - 1))

    drawn = [
        (mark, [(column(p), row(v)) for p, v in zip(chart.places, line, strict=True) if math.isfinite(v)])
        for line, mark in zip(chart.lines.values(), MARKS * len(chart.lines), strict=False)
    ]
    # Marks after the lines between them, so that none is drawn over.
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
    legend = "   ".join(f"{mark} {name}" for name, mark in zip(chart.lines, MARKS * len(chart.lines), strict=False))
    ends = chart.ticks[0] if first == last else f"{chart.ticks[0]}{chart.ticks[-1]:>{width - len(chart.ticks[0])}}"
    return "\n".join(
        [chart.title, *lines, " " * 9 + "+" + "-" * width, " " * 10 + ends, f"{'':10}{chart.axis}   {legend}"]
    )


def write_png(chart: Chart, path: Path) -> None:
    """The chart as a PNG, whole or not at all. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A figure of its own, not pyplot's: no window system is asked for, and nothing stays behind.
    figure = Figure(figsize=(_WIDTH / 80, _HEIGHT / 80), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, line), colour in zip(chart.lines.items(), COLOURS * len(chart.lines), strict=False):
        axes.plot(chart.places, line, marker="o", color=colour, label=f"{name} {line[-1]:.4f}")
    shown = _thinned(len(chart.ticks))
    axes.set_xticks([chart.places[i] for i in shown], [chart.ticks[i] for i in shown])
    axes.set_title(chart.title, fontsize="small")
    axes.set_xlabel(chart.axis)
    axes.grid(color="#ddd")
    axes.legend(frameon=False)
    with written(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def _shown(text: str) -> str:
    """A text from outside, such as a model's name, in HTML."""
    return html.escape(clean(text))
