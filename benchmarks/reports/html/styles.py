"""How the series of a chart are told apart: colour, dash and marker together, on the page and in PNG files.

A hatch is kept for what is no result, and means nothing else. Bars bear their names, and the parts of a stacked bar lie
in the legend's order, so neither is told by colour alone.

The hues are those of Okabe and Ito (2008), which the usual kinds of colour blindness keep apart, without their yellow
and darkened or lightened until each has at least three times the luminance contrast to its background that WCAG 2.2
(criterion 1.4.11) asks of graphics.
"""

from __future__ import annotations

# Blue, vermilion, green, purple, ochre, sky; the reference is drawn in the colour of the text.
LIGHT = ("#0072b2", "#c44e00", "#00805e", "#a8488c", "#8f6500", "#3f8fbf")
DARK = ("#4da8e0", "#ff8b4d", "#2fc79a", "#e39ac4", "#e6b84a", "#9fd3f2")
BACKGROUNDS = {"light": "#ffffff", "dark": "#14181d"}
INK = {"light": "#16191d", "dark": "#e8eaed"}

# SVG's stroke-dasharray.
DASHES = ("", "8 4", "2 3", "10 3 2 3", "14 4")
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "wedge", "plus")
# Of a bar's fill, by how often its colour was used before.
SHADES = (1.0, 0.5, 0.22)


def colour(style: int) -> int:
    # A step further each time round: the light shade of a colour stands beside no neighbour of it.
    return (style + style // len(LIGHT)) % len(LIGHT)


def dash(style: int) -> str:
    return DASHES[style % len(DASHES)] if style >= 0 else ""


def marker(style: int) -> str:
    return MARKERS[style % len(MARKERS)] if style >= 0 else "circle"


def shade(style: int) -> float:
    return SHADES[max(0, style) // len(LIGHT) % len(SHADES)]
