"""How the series of a chart are told apart: colour, dash, marker and pattern together, on the page and in PNG files.

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
PATTERNS = ("solid", "dots", "back", "grid")
# Kept for what is no result.
HATCH = "hatch"


def colour(style: int) -> int:
    return style % len(LIGHT)


def dash(style: int) -> str:
    return DASHES[style % len(DASHES)] if style >= 0 else ""


def marker(style: int) -> str:
    return MARKERS[style % len(MARKERS)] if style >= 0 else "circle"


def pattern(style: int) -> str:
    return PATTERNS[(style + style // len(LIGHT)) % len(PATTERNS)]
