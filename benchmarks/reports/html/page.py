"""The page: one HTML file without scripts that needs no other file and no network."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ....albert_core.output import styles
from ....albert_core.output.charts import Chart, LineChart
from ....albert_core.output.draw import HALF, NARROW, WIDE, draw_svg
from ..blocks import Heading, Section, Table, Words, chart_table
from .text import clean

if TYPE_CHECKING:
    from markupsafe import Markup

KINDS = {Heading: "heading", Words: "words", Table: "table"}


def render_page(title: str, lead: str, sections: list[Section], created: str) -> str:
    """The whole page as text. Everything except this project's own markup is cleaned and escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("isotrain.benchmarks.reports.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        # Markup is this project's own; any other text may come from a stranger.
        finalize=lambda value: clean(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"kind": _kind, "drawn": _drawings, "as_table": chart_table}
    style = f"{styles.variables()}\n{files(__package__).joinpath('page.css').read_text(encoding='utf-8')}"
    return environment.get_template("page.html.j2").render(
        title=title, lead=lead, sections=sections, created=created, style=_markup(style)
    )


def _kind(block: Any) -> str:
    return KINDS.get(type(block), "chart")


def _drawings(chart: Chart) -> list[tuple[str, Markup]]:
    """The chart for a wide and for a narrow window, by the classes of the style sheet."""
    width = HALF if isinstance(chart, LineChart) and chart.half else WIDE
    return [
        ("wide", _markup(draw_svg(chart, width, f"{chart.key}-w"))),
        ("narrow", _markup(draw_svg(chart, NARROW, f"{chart.key}-n"))),
    ]


def _markup(drawing: str) -> Markup:
    from markupsafe import Markup

    return Markup(drawing)
