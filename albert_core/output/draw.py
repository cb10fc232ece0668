"""Charts as SVG elements of a page and as PNG files. matplotlib draws both, in pixels of the page."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ..terminal.text import clean, precise
from . import styles
from .bars import draw_rows, rows_height
from .canvas import BESIDE, FOOT, Canvas, fill_of, plain_axes, pointed, set_up_axis
from .charts import Chart, Line, LineChart, Point, thinned
from .lettering import LINE, SIZE, text_width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Widths of a drawing in pixels: of a page, of half a page, of a phone.
WIDE, HALF, NARROW = 1080, 520, 352
# A legend's sample with the gaps around it.
SAMPLE = 56
# A curve with more points than this is drawn by the lowest and the highest point of each stretch.
MOST_POINTS = 600
MARKS_OF_LONG_CURVES = 10
# Classes of a drawing's elements that have a tooltip.
KINDS = ("series", "bar", "part", "band")
PIXELS_PER_INCH = 72


def draw_svg(chart: Chart, width: float, key: str) -> str:
    """The chart as an SVG element for a page with the colours of `styles.variables`.

    Args:
        width: In pixels.
        key: The prefix of names inside the drawing, unique in the page.
    """
    file = StringIO()
    with _settings(key):
        # The page shows title and date, which a file would contain.
        figure_of(chart, width).savefig(file, format="svg", facecolor="none", metadata={"Date": None})
    return _inline(file.getvalue(), chart, key)


def draw_png(chart: Chart) -> bytes:
    """The content of a PNG file with the chart and its title, in the colours of a light page."""
    file = BytesIO()
    with _settings(chart.key):
        figure = figure_of(chart, WIDE, titled=True)
        look: Any = {"dpi": 110, "facecolor": styles.PAGE, "bbox_inches": "tight", "pad_inches": 0.15}
        figure.savefig(file, format="png", metadata={"Software": None}, **look)
    return file.getvalue()


@contextmanager
def _settings(key: str) -> Iterator[None]:
    # What it says of its caches is nothing that a chart's reader could mend.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": key,
        # External texts are shown as they are: a dollar sign begins no formula.
        "text.parse_math": False,
        "text.color": styles.INK,
        "font.size": SIZE,
        "font.family": "DejaVu Sans",
        "hatch.linewidth": 1.4,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The page's reader may have characters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def figure_of(chart: Chart, width: float, titled: bool = False) -> Figure:
    """The chart on its own figure, independent of windows and of pyplot's global state."""
    from matplotlib.figure import Figure

    title = [(line, "bold") for line in wrapped(chart.title, width, 2)] if titled else []
    title += [(line, "normal") for line in wrapped(chart.words, width, 2)] if titled else []
    top = LINE * len(title) + (10 if title else 0)
    samples = _samples(chart)
    names = [wrapped(name, width - SAMPLE, 3) for _, name in samples]
    widest = max((text_width(line) for name in names for line in name), default=0.0)
    columns = min(len(names), max(1, int(width // (SAMPLE + widest))))
    rows = -(-sum(map(len, names)) // columns) if columns > 1 else sum(map(len, names))
    body = _height(chart, width)
    height = top + body + rows * 1.35 * SIZE + (10 if names else 0)
    canvas = Canvas(Figure((width / PIXELS_PER_INCH, height / PIXELS_PER_INCH), PIXELS_PER_INCH), width, height)
    for place, (line, weight) in enumerate(title):
        canvas.write(0, LINE * (place + 1) - 4, line, weight=weight)
    if isinstance(chart, LineChart):
        _draw_lines(canvas, chart, top, top + body)
    else:
        draw_rows(canvas, chart, top, top + body)
    if names:
        legend = canvas.figure.legend(
            [sample for sample, _ in samples],
            ["\n".join(name) for name in names],
            loc="lower left",
            bbox_to_anchor=(0, 0),
            ncols=columns,
            frameon=False,
            borderaxespad=0,
            borderpad=0,
            labelspacing=0.25,
            handlelength=2.6,
            columnspacing=1.2,
        )
        legend.set_in_layout(False)
    return canvas.figure


def _samples(chart: Chart) -> list[tuple[Any, str]]:
    """A sample of each series beside its name."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if not isinstance(chart, LineChart):
        return [(Patch(**fill_of(fill)), fill.name) for fill in chart.legend()]
    lines: list[tuple[Any, str]] = [(Line2D([], [], **_look(line)), line.name) for line in chart.lines]
    return lines + [(Patch(**_area(band.style)), band.name) for band in chart.bands]


def _height(chart: Chart, width: float) -> float:
    """The chart's height in pixels without its title and its legend."""
    if isinstance(chart, LineChart):
        return LINE + (300 if width >= BESIDE else 220) + FOOT
    return rows_height(chart, width)


def _look(line: Line) -> dict[str, Any]:
    """How a line is drawn. The reference is wide and pale, so that candidates that coincide with it stay visible."""
    is_reference = line.style < 0
    colour = styles.colour(line.style)
    width = 6.0 if is_reference else 1.2 if line.plain else 2.0
    look: dict[str, Any] = {"color": colour, "linewidth": width, "zorder": 1.5 if is_reference else 2.5}
    look["alpha"] = 0.35 if is_reference else None
    dash = styles.dash(line.style)
    look["linestyle"] = "none" if len(line.points) < 2 else (0, [part / width for part in dash]) if dash else "solid"
    if line.marked and not is_reference:
        look |= {"marker": styles.marker(line.style), "markersize": 7, "markeredgewidth": 1.5}
        look |= {"markerfacecolor": styles.PAGE} if line.invalid else {}
    return look


def _area(style: int) -> dict[str, Any]:
    return {"facecolor": (styles.colour(style), 0.16), "edgecolor": (styles.colour(style), 0.8), "linestyle": ":"}


def _draw_lines(canvas: Canvas, chart: LineChart, top: float, bottom: float) -> None:
    canvas.write(0, top + SIZE, chart.y.label, color=styles.QUIET)
    share = (0, 1 - bottom / canvas.height, 1, (bottom - top - LINE) / canvas.height)
    canvas.figure.set_layout_engine("constrained", rect=share, w_pad=0.02, h_pad=0.04)
    axes = canvas.figure.add_subplot()
    for band in chart.bands:
        chosen = set(thinned([x for x, *_ in band.points], MOST_POINTS))
        x, low, high = zip(*(point for point in band.points if point[0] in chosen), strict=True)
        axes.fill_between(x, low, high, gid=pointed("band", band.name), **_area(band.style))
    for line in chart.lines:
        _draw_line(axes, line)
    room = canvas.width - 70
    values = [value for line in chart.lines for _, value in line.points if value is not None]
    values += [end for band in chart.bands for _, *ends in band.points for end in ends]
    set_up_axis(axes, "y", chart.y, values, 6)
    if chart.x.names:
        places = _with_room(chart.x.names, room)
        axes.set_xticks(places, [clean(chart.x.names[place]) for place in places])
    else:
        set_up_axis(axes, "x", chart.x, [x for line in chart.lines for x, _ in line.points], int(room // 80))
    axes.grid(True, color=styles.GRID, linewidth=1)
    plain_axes(axes, chart.x.label)
    # Below the label of the lowest tick beside the axis.
    axes.tick_params(axis="x", pad=10)


def _draw_line(axes: Axes, line: Line) -> None:
    drawn = extremes(line.points, MOST_POINTS)
    x = [place for place, _ in drawn]
    y = [math.nan if value is None else value for _, value in drawn]
    known = [place for place, value in enumerate(y) if math.isfinite(value)]
    marks = known if len(known) <= 40 else [int(place) for place in thinned(known, MARKS_OF_LONG_CURVES)]
    said = f": {precise(x[0])}, {precise(y[0])}" if len(x) == len(known) == 1 else ""
    axes.plot(x, y, markevery=marks, gid=pointed("series", f"{line.name}{said}"), **_look(line))
    if line.lows:
        below = [max(0.0, value - low) for value, low in zip(y, line.lows, strict=True)]
        above = [max(0.0, high - value) for value, high in zip(y, line.highs, strict=True)]
        axes.errorbar(x, y, yerr=[below, above], color=styles.colour(line.style), fmt="none", capsize=4, linewidth=1.5)


def _with_room(names: Sequence[str], room: float) -> list[int]:
    """Which names of an axis fit beside each other. The first always does."""
    step = room / max(1, len(names) - 1)
    kept = [0]
    for place in range(1, len(names)):
        between = (text_width(names[place]) + text_width(names[kept[-1]])) / 2 + 8
        if (place - kept[-1]) * step >= between:
            kept.append(place)
    return kept


def _inline(svg: str, chart: Chart, key: str) -> str:
    """The drawing as an element of a page, with the page's colours and a description for screen readers."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in [one for one in parent if one.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
    used = set(re.findall(r"#([\w-]+)", svg))
    colours = {pair[0]: f"var(--{name})" for name, pair in styles.COLOURS.items()}
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        given = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        kind, _, said = given.get("id", "").partition("|")
        if given.get("id") not in used:
            given.pop("id", None)
        if kind in KINDS:
            given["class"] = kind
            tip = ElementTree.Element("title")
            tip.text = said
            element.insert(0, tip)
        # The page's own font replaces the one that was measured.
        style = re.sub("font[^;]*; ?", "", given.get("style", ""))
        if "fill" in given:
            style += f"; fill: {given.pop('fill')}"
        given["style"] = re.sub("#[0-9a-f]{6}", lambda found: colours.get(found[0], found[0]), style)
        if not (element.text or "").strip():
            element.text = None
        element.tail = None
        element.attrib = {
            name: value if name in ("id", "class", "href") else re.sub(r"(\.\d\d)\d+", r"\1", value)
            for name, value in given.items()
            if value and not value.startswith("rotate(-0")
        }
    box = root.attrib["viewBox"]
    _, _, width, height = box.split()
    root.attrib = {"class": "chart", "role": "img", "aria-labelledby": f"{key}-title {key}-words"}
    root.attrib |= {"viewBox": box, "width": width, "height": height}
    for tag, words in (("desc", chart.words), ("title", chart.title)):
        element = ElementTree.Element(tag, {"id": f"{key}-{'title' if tag == 'title' else 'words'}"})
        element.text = clean(words)
        root.insert(0, element)
    return ElementTree.tostring(root, encoding="unicode")


def extremes(points: tuple[Point, ...], most: int) -> list[Point]:
    """At most about `most` points: the lowest and the highest of each stretch of a long curve, and the first gap."""
    if len(points) <= most:
        return list(points)
    stretch = -(-len(points) * 2 // most)
    kept: list[Point] = [points[0]]
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        known = [(value, place) for place, (_, value) in enumerate(part) if value is not None]
        gaps = [place for place, (_, value) in enumerate(part) if value is None][:1]
        places = {min(known)[1], max(known)[1]} if known else set()
        kept += [part[place] for place in sorted(places | set(gaps))]
    return [*kept, points[-1]]
