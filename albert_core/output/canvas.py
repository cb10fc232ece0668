"""What all drawings of charts share: a figure in pixels, axes with round ticks, fills."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..terminal.text import clean
from . import styles
from .charts import Axis, Fill

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From this width on, names stand beside their bars, and curves are taller.
BESIDE = 700
# Space below the plot for the labels of the ticks and of the axis.
FOOT = 48


@dataclass(frozen=True)
class Canvas:
    """A figure with positions in pixels from its upper left corner."""

    figure: Figure
    width: float
    height: float

    def write(self, x: float, y: float, words: str, **options: Any) -> None:
        self.figure.text(x / self.width, 1 - y / self.height, clean(words), **options)

    def axes(self, left: float, top: float, right: float, bottom: float) -> Axes:
        size = ((right - left) / self.width, (bottom - top) / self.height)
        return self.figure.add_axes((left / self.width, 1 - bottom / self.height, *size))


def pointed(kind: str, words: str) -> str:
    """The name of a drawn part. `_inline` makes its class and its tooltip from it."""
    return f"{kind}|{clean(words)}"


def fill_of(fill: Fill) -> dict[str, Any]:
    colour = styles.colour(fill.style)
    if fill.hatched:
        return {"facecolor": styles.PAGE, "edgecolor": colour, "hatch": "////", "linewidth": 1}
    return {"facecolor": (colour, styles.shade(fill.style)), "edgecolor": colour, "linewidth": 1}


def set_up_axis(axes: Axes, way: str, axis: Axis, values: Sequence[float], most: int) -> None:
    """A linear or logarithmic axis over `values` with at most `most` round ticks. Their labels have all digits."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    positive = [value for value in values if value > 0]
    set_scale, set_limits = (axes.set_xscale, axes.set_xlim) if way == "x" else (axes.set_yscale, axes.set_ylim)
    drawn = axes.xaxis if way == "x" else axes.yaxis
    lowest, highest = min(positive, default=1.0), max(positive, default=1.0)
    if axis.log and len(positive) < len(values):
        # matplotlib's only scale with a zero below its powers of ten.
        set_scale("symlog", linthresh=lowest, linscale=0.7)
        set_limits(0.0, highest * 2)
        powers = range(math.ceil(math.log10(lowest)), math.floor(math.log10(highest * 2)) + 1)
        drawn.set_ticks([0.0, *(10.0**power for power in powers[:: len(powers) // most + 1])])
    elif axis.log:
        # At least a decade, so that some round value lies in it.
        middle = math.sqrt(lowest * highest)
        low, high = axis.span or (min(lowest / 1.6, middle / 3.2), max(highest * 1.6, middle * 3.2))
        set_scale("log")
        set_limits(low, high)
        few = high / low < 50
        drawn.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=max(3, most)))
    else:
        whole = way == "x" and all(value == int(value) for value in values)
        drawn.set_major_locator(MaxNLocator(max(2, most), steps=[1, 2, 2.5, 5, 10], integer=whole))
    axes.minorticks_off()
    drawn.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, *drawn.get_view_interval(), axis.log)))


def _tick(value: float, low: float, high: float, log: bool) -> str:
    """A tick's label, with the digits that distinguish it from its neighbours."""
    if value == 0 or (not log and abs(value) < 1e-9 * (high - low)):
        return "0"
    if log:
        return f"{value:,g}" if 1e-3 <= value < 1e6 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    digits = 2 + max(0, math.ceil(math.log10(max(abs(low), abs(high)) / (high - low))))
    return f"{value:,.{max(digits, 6 if abs(value) >= 1 else 3)}g}"


def plain_axes(axes: Axes, label: str) -> None:
    axes.set_axisbelow(True)
    axes.set_xlabel(clean(label), color=styles.QUIET)
    axes.tick_params(length=0, labelcolor=styles.QUIET)
    axes.patch.set_visible(False)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(styles.QUIET)
