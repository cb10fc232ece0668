"""What a chart shows, apart from how it is drawn. `draw` makes SVG and PNG from the same objects.

A style is a number. The drawing maps it to a colour, a dash, a marker and a shade, so that series differ by more than
colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..terminal.text import figure

REFERENCE = -1
Point = tuple[float, float | None]


@dataclass(frozen=True)
class Axis:
    """An axis. A logarithmic axis shows a zero at its lower end.

    `names` are the labels at 0, 1, 2, ... of an axis without a unit. `span` is the part of the axis that is shown
    (None: everything).
    """

    label: str
    log: bool = False
    names: tuple[str, ...] = ()
    span: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """Points joined in order. A point without a value is a gap. A line that isn't `marked` is a limit, not data.

    `lows` and `highs` are the interval of each point, if it has one. `plain` lines are thin, `invalid` ones hollow.
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
    """Curves over an axis. `key` names its file and its place on the page. Two with `half` stand side by side."""

    key: str
    title: str
    words: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    bands: tuple[Band, ...] = ()
    half: bool = False


@dataclass(frozen=True)
class Fill:
    """How a bar or a part of one is filled, and what that means."""

    name: str
    style: int
    hatched: bool = False


@dataclass(frozen=True)
class Bar:
    """One value with its interval. `words` qualify it beside its name.

    `hatched`: it is no result. `empty`: there is no value, only the name and the reason.
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
        return "" if self.empty else f"{figure(self.low)} to {figure(self.high)}"

    @property
    def figures(self) -> str:
        return "no figures" if self.empty else f"{figure(self.value)} ({self.interval})"


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars from zero. `groups` are the meanings of the styles from 0 on."""

    key: str
    title: str
    words: str
    unit: str
    bars: tuple[Bar, ...]
    groups: tuple[str, ...] = ()

    def legend(self) -> list[Fill]:
        """What the fills mean. Empty if all bars are alike."""
        hatched = sorted({bar.style for bar in self.bars if bar.hatched})
        fills = [Fill(name, style) for style, name in enumerate(self.groups)] if len(self.groups) > 1 else []
        return fills + [Fill("hatched: invalid, to be used for nothing", style, True) for style in hatched[:1]]


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
    """Horizontal bars with parts that add up."""

    key: str
    title: str
    words: str
    unit: str
    parts: tuple[str, ...]
    stacks: tuple[Stack, ...]

    def legend(self) -> list[Fill]:
        """The parts, in their order within every bar."""
        return [Fill(part, style) for style, part in enumerate(self.parts)]


Chart = LineChart | BarChart | StackedChart


def joined_name(name: str, words: str) -> str:
    return f"{name} ({words})" if words else name


def thinned(values: Sequence[float], most: int) -> list[float]:
    """At most `most` of the values, evenly chosen, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]
