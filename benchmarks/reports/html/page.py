"""The page: one HTML file that needs nothing beside it, no script and no network."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ....albert_core.output.charts import BarChart, Chart, Fill, Line, LineChart
from ..blocks import Heading, Section, Table, Words, chart_table
from . import styles
from .draw_bars import draw_bars, draw_stacks
from .draw_lines import draw_lines
from .svg import Patterns, hue, mark, node
from .text import clean

if TYPE_CHECKING:
    from markupsafe import Markup

# A chart is drawn for a wide window and for a narrow one; the style sheet shows one of them.
WIDE, HALF, NARROW = 1080.0, 520.0, 352.0
KINDS = {Heading: "heading", Words: "words", Table: "table"}


def render_page(title: str, lead: str, sections: list[Section], created: str) -> str:
    """The whole page as text. Everything that isn't markup of this module's own is cleaned and escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("isotrain.benchmarks.reports.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        # Markup is of this module's own making, any other text may be a stranger's.
        finalize=lambda value: clean(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"kind": _kind, "drawn": _drawings, "legend": _legend, "as_table": chart_table}
    return environment.get_template("page.html.j2").render(
        title=title, lead=lead, sections=sections, created=created, style=_style_sheet()
    )


def _kind(block: Any) -> str:
    return KINDS.get(type(block), "chart")


def _drawings(chart: Chart) -> list[tuple[str, Markup]]:
    """The chart for a wide window and for a narrow one, by the class that the style sheet knows."""
    width = HALF if isinstance(chart, LineChart) and chart.half else WIDE
    return [
        ("wide", _markup(_draw(chart, width, f"{chart.key}-w"))),
        ("narrow", _markup(_draw(chart, NARROW, f"{chart.key}-n"))),
    ]


def _draw(chart: Chart, width: float, key: str) -> str:
    if isinstance(chart, LineChart):
        return draw_lines(chart, width, key)
    return draw_bars(chart, width, key) if isinstance(chart, BarChart) else draw_stacks(chart, width, key)


def _legend(chart: Chart) -> list[tuple[Markup, str]]:
    """A sample of each series beside its name."""
    if not isinstance(chart, LineChart):
        return [(_markup(_part(f"{chart.key}-l", fill)), fill.name) for fill in chart.legend()]
    lines = [(_markup(_sample(line)), line.name) for line in chart.lines]
    return lines + [(_markup(_area(band.style)), band.name) for band in chart.bands]


def _swatch(width: int) -> ElementTree.Element:
    size = {"width": str(width), "height": "14", "viewBox": f"0 0 {width} 14"}
    return ElementTree.Element("svg", {"class": "swatch", "aria-hidden": "true"} | size)


def _sample(line: Line) -> str:
    svg = _swatch(40)
    if len(line.points) > 1:
        class_ = f"line {hue(line.style)}{' plain' if line.plain else ''}"
        node(svg, "path", d="M0 7H40", class_=class_, stroke_dasharray=styles.dash(line.style))
    if line.marked:
        # A sample is no mark: marks are data.
        shape = mark(svg, 20, 7, line.style, hollow=line.invalid)
        shape.set("class", shape.get("class", "").replace("mark", "sample"))
    return ElementTree.tostring(svg, encoding="unicode")


def _area(style: int) -> str:
    svg = _swatch(40)
    node(svg, "rect", x=0, y=1, width=40, height=12, class_=f"band {hue(style)}")
    node(svg, "path", d="M0 1H40M0 13H40", class_=f"edge {hue(style)}")
    return ElementTree.tostring(svg, encoding="unicode")


def _part(key: str, fill: Fill) -> str:
    svg = _swatch(22)
    value = Patterns(svg, f"{key}{fill.style}").fill(fill.style, fill.hatched)
    opacity = styles.shade(fill.style)
    node(svg, "rect", width=22, height=14, fill=value, fill_opacity=opacity, class_=f"part {hue(fill.style)}")
    return ElementTree.tostring(svg, encoding="unicode")


def _markup(drawing: str) -> Markup:
    from markupsafe import Markup

    return Markup(drawing)


def _style_sheet() -> Markup:
    """page.css with the palette of `styles` for light and dark."""
    text = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    for theme, colours in (("light", styles.LIGHT), ("dark", styles.DARK)):
        values = [f"--s{index}: {value};" for index, value in enumerate(colours)]
        values += [f"--page: {styles.BACKGROUNDS[theme]};", f"--ink: {styles.INK[theme]};"]
        text = text.replace(f"/* palette: {theme} */", " ".join(values))
    hues = "\n".join(f".s{index} {{ color: var(--s{index}); }}" for index in range(len(styles.LIGHT)))
    return _markup(re.sub(r"\n{2,}", "\n", f"{text}\n{hues}\n"))
