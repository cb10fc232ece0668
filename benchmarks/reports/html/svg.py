"""The primitives of the page's charts: elements, markers, patterns, a chart's frame. No text is drawn over another.

Colours are CSS variables of the page, so that one drawing serves light and dark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from . import styles
from .scale import Scale, text_width, wrapped

Element = ElementTree.Element
# Text is drawn at its own size: a chart is drawn once for each width, and scaled little.
SIZE = 13.0
LINE = 18.0
# From an axis to its ticks' words: the words of a tick beside it end above them.
TICK_DROP = 23.0


def node(parent: Element, tag: str, text: str = "", **attributes: Any) -> Element:
    """A child element. Attributes are written as SVG has them: ``stroke_width=1.5`` is ``stroke-width="1.5"``."""
    element = ElementTree.SubElement(parent, tag, {_attribute(key): _value(value) for key, value in attributes.items()})
    element.text = text or None
    return element


def _attribute(key: str) -> str:
    return {"class_": "class", "view_box": "viewBox"}.get(key, key.replace("_", "-"))


def _value(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def picture(key: str, title: str, words: str, width: float) -> Element:
    """An empty drawing that a screen reader announces by its title and describes by `words`."""
    svg = Element("svg", {"class": "chart", "role": "img", "aria-labelledby": f"{key}-title {key}-words"})
    node(svg, "title", title, id=f"{key}-title")
    node(svg, "desc", words, id=f"{key}-words")
    svg.set("width", f"{width:g}")
    return svg


def finished(svg: Element, width: float, height: float) -> str:
    """The drawing as markup. It fills its column and keeps its proportions."""
    svg.set("viewBox", f"0 0 {width:g} {height:.0f}")
    svg.set("height", f"{height:.0f}")
    return ElementTree.tostring(svg, encoding="unicode")


def text(parent: Element, x: float, y: float, words: str, anchor: str = "start", class_: str = "") -> Element:
    return node(parent, "text", words, x=x, y=y, text_anchor=anchor, class_=f"text {class_}".strip())


def hue(style: int) -> str:
    """The class whose `color` is the style's."""
    return "ink" if style < 0 else f"s{styles.colour(style)}"


def mark(parent: Element, x: float, y: float, style: int, tip: str = "", hollow: bool = False) -> Element:
    """A marker of the style's shape. `tip` shows when a pointer rests on it."""
    element = node(
        parent, "path", d=_shape(styles.marker(style), x, y), class_=f"mark {hue(style)}{' hollow' if hollow else ''}"
    )
    if tip:
        node(element, "title", tip)
    return element


def _shape(name: str, x: float, y: float, r: float = 4.2) -> str:
    if name == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    corners = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "triangle": [(0, -1.2), (1.1, 0.85), (-1.1, 0.85)],
        "wedge": [(0, 1.2), (1.1, -0.85), (-1.1, -0.85)],
        "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
    }.get(name)
    if corners is None:
        arms = [(-1, -1, 2, 2), (-1, 1, 2, -2)] if name == "cross" else [(-1.2, 0, 2.4, 0), (0, -1.2, 0, 2.4)]
        return "".join(f"M{x + r * a:.1f} {y + r * b:.1f}l{r * c:.1f} {r * d:.1f}" for a, b, c, d in arms)
    return "M" + "L".join(f"{x + r * a:.1f} {y + r * b:.1f}" for a, b in corners) + "z"


class Patterns:
    """The fills of one drawing: each has its own, for what a hidden drawing defines is lost to the others."""

    def __init__(self, svg: Element, key: str) -> None:
        self._key = key
        self._defs = node(svg, "defs")
        self._known: set[str] = set()

    def fill(self, style: int, hatched: bool) -> str:
        """The value of a `fill` attribute."""
        if not hatched:
            return "currentColor"
        name = f"{self._key}-hatch-{hue(style)}"
        if name not in self._known:
            self._known.add(name)
            self._define(name, style)
        return f"url(#{name})"

    def _define(self, name: str, style: int) -> None:
        tile = node(self._defs, "pattern", id=name, width=8, height=8, class_=f"tile {hue(style)}")
        tile.set("patternUnits", "userSpaceOnUse")
        node(tile, "rect", width=8, height=8, class_="ground")
        node(tile, "path", d="M-2 2l4-4M0 8l8-8M6 10l4-4")


@dataclass(frozen=True)
class Frame:
    """The part of a chart that data is drawn in, with its two scales."""

    x: Scale
    y: Scale


def axis_of_values(
    svg: Element, scale: Scale, top: float, bottom: float, label: str, middle: float, width: float
) -> float:
    """Grid lines, ticks and the label of a horizontal axis below `bottom`. Returns where it ends."""
    for tick in scale.fitting(SIZE, width):
        node(svg, "line", x1=tick.place, x2=tick.place, y1=top, y2=bottom, class_="grid")
        text(svg, tick.middle, bottom + TICK_DROP, tick.words, "middle", "tick")
    return axis_label(svg, label, middle, bottom)


def axis_label(svg: Element, label: str, middle: float, bottom: float) -> float:
    """Writes a horizontal axis's label below its ticks. Returns where it ends."""
    text(svg, middle, bottom + TICK_DROP + LINE + 2, label, "middle", "axis")
    return bottom + TICK_DROP + LINE + 10


def side_ticks(scale: Scale, most: int, has_zero: bool) -> list[tuple[float, str]]:
    """Ticks of a vertical scale with their words; `has_zero`: a logarithmic one has zeros at its foot."""
    ticks = scale.labelled(most)
    if scale.log and has_zero:
        return [(0.0, "0"), *((value, words) for value, words in ticks if scale.start - scale(value) > LINE)]
    return ticks


def lines_of(words: str, width: float, most: int = 3) -> list[str]:
    return wrapped(words, width, SIZE, most) if words else []


def widest(texts: list[str]) -> float:
    return max((text_width(words, SIZE) for words in texts), default=0.0)
