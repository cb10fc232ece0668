"""The page's charts as PNG files, by matplotlib: the same data, labels, colours, dashes, markers and hatches."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from .... import UserError
from ....albert_core.output.charts import REFERENCE, BarChart, Chart, Fill, Line, LineChart, StackedChart, joined_name
from ....albert_core.terminal.text import number
from ....kernels.install import install_hint
from . import styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DOTS_PER_INCH = 11.0, 150
MARKERS = {
    "circle": "o",
    "square": "s",
    "triangle": "^",
    "diamond": "D",
    "cross": "x",
    "wedge": "v",
    "plus": "+",
}
HATCH = "///"


def draw_png(chart: Chart) -> bytes:
    """The chart as a PNG file's content. Raises UserError where matplotlib is not installed."""
    figure, axes = _canvas(_height(chart))
    if isinstance(chart, LineChart):
        _lines(axes, chart)
    elif isinstance(chart, BarChart):
        _bars(axes, chart)
    else:
        _stacks(axes, chart)
    figure.suptitle(chart.title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes.set_title(chart.words, loc="left", fontsize=9, color=styles.INK["light"])
    axes.grid(True, color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return file.getvalue()


def _canvas(height: float) -> tuple[Figure, Axes]:
    """A figure of its own, which no window and no global state of pyplot knows."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"--png needs matplotlib, which is not here ({error}): `{install_hint('plots')}`") from error
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _height(chart: Chart) -> float:
    if isinstance(chart, LineChart):
        return 6.0 + 0.12 * len(chart.lines)
    rows = len(chart.bars) if isinstance(chart, BarChart) else len(chart.stacks)
    return 1.9 + 0.45 * rows


def _colour(style: int) -> str:
    return styles.INK["light"] if style == REFERENCE else styles.LIGHT[styles.colour(style)]


def _dash(style: int) -> Any:
    lengths = [float(length) for length in styles.dash(style).split()]
    # A dash is measured in widths of its line there, in pixels on the page.
    return (0, [length / 2 for length in lengths]) if lengths else "solid"


def _lines(axes: Axes, chart: LineChart) -> None:
    for band in chart.bands:
        x, low, high = zip(*band.points, strict=True)
        axes.fill_between(x, low, high, color=_colour(band.style), alpha=0.18, label=_plain(band.name))
    for line in chart.lines:
        _line(axes, line)
    axes.set_xlabel(chart.x.label)
    axes.set_ylabel(chart.y.label)
    if chart.x.names:
        axes.set_xticks(range(len(chart.x.names)), chart.x.names)
    if chart.x.log:
        axes.set_xscale("log")
    if chart.y.log:
        values = [value for line in chart.lines for _, value in line.points if value is not None]
        positive = [value for value in values if value > 0]
        if positive and len(positive) < len(values):
            # The only scale of matplotlib that has a zero below its powers of ten.
            axes.set_yscale("symlog", linthresh=min(positive))
            axes.set_ylim(bottom=0.0)
        else:
            axes.set_yscale("log")
    axes.figure.legend(loc="outside lower left", ncols=3, fontsize=8, frameon=False)


def _line(axes: Axes, line: Line) -> None:
    x = [at for at, _ in line.points]
    y = [float("nan") if value is None else value for _, value in line.points]
    shape: dict[str, Any] = {"linestyle": _dash(line.style), "linewidth": 1.0 if line.plain else 1.8}
    if line.marked:
        every = 1 if len(x) <= 40 else len(x) // 10
        shape |= {"marker": MARKERS[styles.marker(line.style)], "markersize": 6, "markevery": every}
        shape |= {"markerfacecolor": "white"} if line.invalid else {}
    axes.plot(x, y, color=_colour(line.style), label=_plain(line.name), **shape)
    if line.lows:
        below = [value - low for value, low in zip(y, line.lows, strict=True)]
        above = [high - value for value, high in zip(y, line.highs, strict=True)]
        axes.errorbar(x, y, yerr=[below, above], color=_colour(line.style), fmt="none", capsize=4)


def _bars(axes: Axes, chart: BarChart) -> None:
    for place, bar in enumerate(chart.bars):
        if bar.empty:
            continue
        axes.barh(place, bar.value, height=0.55, **_fill(bar.style, bar.hatched))
        axes.errorbar(
            bar.value,
            place,
            xerr=[[max(0.0, bar.value - bar.low)], [max(0.0, bar.high - bar.value)]],
            color=styles.INK["light"],
            capsize=4,
        )
    _names(axes, [f"{joined_name(bar.name, bar.words)}\n{bar.figures}" for bar in chart.bars], chart.unit)
    _legend(axes, chart.legend())


def _stacks(axes: Axes, chart: StackedChart) -> None:
    done = [0.0] * len(chart.stacks)
    places = list(range(len(chart.stacks)))
    for style, part in enumerate(chart.parts):
        lengths = [stack.parts.get(part, 0.0) for stack in chart.stacks]
        axes.barh(places, lengths, left=done, height=0.55, **_fill(style, False))
        done = [before + length for before, length in zip(done, lengths, strict=True)]
    names = [f"{joined_name(stack.name, stack.words)}\n{number(stack.total)}" for stack in chart.stacks]
    _names(axes, names, chart.unit)
    _legend(axes, chart.legend())


def _legend(axes: Axes, fills: list[Fill]) -> None:
    """A sample of each fill with its name, below the chart."""
    from matplotlib.patches import Patch

    samples = [Patch(label=_plain(fill.name), **_fill(fill.style, fill.hatched)) for fill in fills]
    if samples:
        axes.figure.legend(
            handles=samples, loc="outside lower left", ncols=min(8, len(fills)), fontsize=8, frameon=False
        )


def _names(axes: Axes, names: list[str], unit: str) -> None:
    axes.set_yticks(range(len(names)), [_plain(name) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel(unit)


def _fill(style: int, hatched: bool) -> dict[str, Any]:
    colour = _colour(style)
    if hatched:
        return {"facecolor": f"{colour}30", "edgecolor": colour, "hatch": HATCH}
    return {"facecolor": f"{colour}{round(255 * styles.shade(style)):02x}", "edgecolor": "white"}


def _plain(text: str) -> str:
    """A text that is shown as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")
