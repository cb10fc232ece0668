"""How the series of a chart differ: by colour, dash and marker together, on a page and in PNG files.

A hatch marks what is no result, and nothing else. Bars have their names beside them, and the parts of a stacked bar
have the legend's order, so neither depends on colour alone.

The hues are those of Okabe and Ito (2008), which stay distinct with the usual kinds of colour blindness, without their
yellow. They are darkened or lightened until each has at least three times the luminance contrast to its background that
WCAG 2.2 (criterion 1.4.11) requires of graphics.
"""

from __future__ import annotations

# Blue, vermilion, green, purple, ochre, sky; the reference is drawn in the colour of the text.
LIGHT = ("#0072b2", "#c44e00", "#00805e", "#a8488c", "#8f6500", "#3f8fbf")
DARK = ("#4da8e0", "#ff8b4d", "#2fc79a", "#e39ac4", "#e6b84a", "#9fd3f2")

# By the names of a page's CSS variables, in light and dark mode.
COLOURS = {
    **{f"s{index}": pair for index, pair in enumerate(zip(LIGHT, DARK, strict=True))},
    "page": ("#ffffff", "#14181d"),
    "ink": ("#16191d", "#e8eaed"),
    "quiet": ("#565d66", "#a5adb8"),
    "grid": ("#e4e7eb", "#2a3038"),
    "alarm": ("#a8201a", "#ff9d94"),
}
PAGE, INK, QUIET, GRID, ALARM = (COLOURS[name][0] for name in ("page", "ink", "quiet", "grid", "alarm"))

# Lengths of dashes and gaps in pixels.
DASHES = ((), (8, 4), (2, 3), (10, 3, 2, 3), (14, 4))
# matplotlib's names: circle, square, triangle, diamond, cross, wedge, plus.
MARKERS = "os^DxvP"
# Shades of a bar's fill, by how often its colour was used before.
SHADES = (1.0, 0.5, 0.22)


def variables() -> str:
    """CSS that defines the colours of a page's charts in light and dark mode."""
    light, dark = (" ".join(f"--{name}: {pair[theme]};" for name, pair in COLOURS.items()) for theme in (0, 1))
    light = f":root {{ color-scheme: light dark; {light} }}"
    return f"{light}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def colour(style: int) -> str:
    """The light-mode colour of a style. A negative style is the reference."""
    # Shifted by one each time round, so that the light shade of a colour has no neighbour of the same colour.
    return INK if style < 0 else LIGHT[(style + style // len(LIGHT)) % len(LIGHT)]


def dash(style: int) -> tuple[int, ...]:
    return DASHES[style % len(DASHES)] if style >= 0 else ()


def marker(style: int) -> str:
    return MARKERS[style % len(MARKERS)] if style >= 0 else MARKERS[0]


def shade(style: int) -> float:
    return SHADES[max(0, style) // len(LIGHT) % len(SHADES)]
