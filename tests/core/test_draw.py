"""Charts as drawn: the data, the words and the colours that a reader sees, the same in SVG and PNG."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from isotrain.albert_core.output import styles
from isotrain.albert_core.output.charts import (
    REFERENCE,
    Axis,
    Band,
    Bar,
    BarChart,
    Chart,
    Line,
    LineChart,
    Stack,
    StackedChart,
)
from isotrain.albert_core.output.draw import (
    HALF,
    NARROW,
    WIDE,
    draw_png,
    draw_svg,
    extremes,
    figure_of,
)
from isotrain.albert_core.output.lettering import text_width, wrapped

HOSTILE = "</text><script>alert(1)</script> $x_1$ ]]> \x1b[31m \u202e"
BARS = BarChart(
    "bars",
    "Bars · random weights",
    "words",
    "samples/s",
    (
        Bar("a $1", 5.0, 4.0, 7.0, 0),
        Bar("b", 3.0, 2.0, 4.0, 1, "invalid", True),
        Bar("c", words="failed", empty=True),
    ),
    ("forward", "train_step"),
)
PARTS = (Stack("a", {"x": 1.0, "y": 2.0}), Stack("b", {"y": 3.0}))
STACKS = StackedChart("stacks", "t", "w", "seconds", ("x", "y"), PARTS)
CURVE = Line("cpu", ((1.0, 3.0), (2.0, None), (3.0, 0.0)), 1)
LINES = LineChart("lines", "t", "w", Axis("step"), Axis("loss", log=True), (CURVE,))


def texts(chart: Chart, width: float = WIDE) -> list[str]:
    """What a reader sees written, without what shows when a pointer rests."""
    root = ElementTree.fromstring(draw_svg(chart, width, "k"))
    return ["".join(node.itertext()) for node in root.iter("text")]


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_bars_have_their_values_intervals_and_words(width: float) -> None:
    (axes,) = figure_of(BARS, width).axes
    assert [bar.get_width() for bar in axes.patches] == [5.0, 3.0]
    assert [bool(bar.get_hatch()) for bar in axes.patches] == [False, True]
    whiskers = [container[2][0].get_segments()[0] for container in axes.containers if hasattr(container, "has_xerr")]
    assert [[x for x, _ in whisker] for whisker in whiskers] == [[4.0, 7.0]] * 2 + [[2.0, 4.0]] * 2
    seen = " ".join(texts(BARS, width))
    for words in ("a $1", "5 (4 to 7)", "b", "invalid", "c", "failed", "no figures", "samples/s"):
        assert words in seen


def test_a_legend_says_what_colours_and_hatches_mean() -> None:
    (legend,) = figure_of(BARS, WIDE).legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["forward", "train_step", "hatched: invalid, to be used for nothing"]
    assert [bool(patch.get_hatch()) for patch in legend.get_patches()] == [False, False, True]
    assert not figure_of(replace(BARS, bars=BARS.bars[:1], groups=()), WIDE).legends


def test_parts_stand_behind_each_other() -> None:
    (axes,) = figure_of(STACKS, WIDE).axes
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 1), (1, 2), (0, 3)]


def test_curves_have_their_points_and_a_zero_has_its_place() -> None:
    (axes,) = figure_of(LINES, WIDE).axes
    (line,) = axes.lines
    assert list(line.get_xdata()) == [1.0, 2.0, 3.0]
    values = [float(value) for value in line.get_ydata()]
    assert (values[0], math.isnan(values[1]), values[2]) == (3.0, True, 0.0)
    assert axes.get_ylim()[0] == 0.0
    seen = texts(LINES)
    assert {"step", "loss", "cpu", "0", "1"} <= set(seen)


@pytest.mark.parametrize("values", [(0.0, 0.0), (0.0035, 0.0036), (3e-9, 4e7), (5.0, 5.0)])
def test_a_logarithmic_axis_has_ticks_and_shows_every_value(values: tuple[float, float]) -> None:
    points = tuple((float(x), value) for x, value in enumerate(values))
    chart = replace(LINES, x=Axis("x", names=("a", "b")), lines=(replace(CURVE, points=points),))
    (axes,) = figure_of(chart, WIDE).axes
    low, high = axes.get_ylim()
    assert all(low <= value < high for value in values)
    assert [text for text in texts(chart) if re.fullmatch(r"[\d.,e-]+", text)]
    drawn = ElementTree.fromstring(draw_svg(chart, WIDE, "k"))
    (series,) = (node for node in drawn.iter("g") if node.get("class") == "series")
    assert len(list(series.iter("use"))) == 2


def test_the_reference_is_wide_and_pale_under_the_candidates() -> None:
    points = tuple((float(x), 1.0) for x in range(5))
    lines = (Line("cpu", points, 0), Line("reference", points, REFERENCE))
    (axes,) = figure_of(replace(LINES, lines=lines), WIDE).axes
    candidate, reference = axes.lines
    assert reference.get_linewidth() >= 2 * candidate.get_linewidth()
    assert reference.get_zorder() < candidate.get_zorder()
    assert reference.get_alpha() < 0.5


def test_an_axis_shows_the_span_that_it_is_given() -> None:
    (axes,) = figure_of(replace(LINES, y=Axis("loss", log=True, span=(2.0, 4.0)), lines=(CURVE_ABOVE,)), WIDE).axes
    assert axes.get_ylim() == (2.0, 4.0)


CURVE_ABOVE = Line("cpu", ((1.0, 3.0), (2.0, 3.5)), 1)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 1.0, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (0.0, 26000.0, ["0", "5,000", "10,000", "15,000", "20,000", "25,000"]),
        (-3e-5, 3e-5, ["-2e-05", "0", "2e-05"]),
        (4.35001, 4.35003, ["4.35001", "4.350015", "4.35002", "4.350025", "4.35003"]),
    ],
)
def test_ticks_are_round_and_their_words_tell_them_apart(low: float, high: float, labels: list[str]) -> None:
    chart = replace(LINES, x=Axis("x", names=("a", "b")), y=Axis("y"), lines=(Line("l", ((0, low), (1, high)), 0),))
    assert [text for text in texts(chart) if re.fullmatch(r"[-\d.,e]+", text)] == labels


def test_a_drawing_is_an_element_of_a_page_in_the_colours_of_the_page() -> None:
    band = Band("band", ((1.0, 0.5, 4.0), (3.0, 0.5, 4.0)), 2)
    for chart in (BARS, STACKS, replace(LINES, bands=(band,))):
        for width in (WIDE, HALF, NARROW):
            drawn = draw_svg(chart, width, "a-key")
            root = ElementTree.fromstring(drawn)
            assert drawn.startswith("<svg ")
            assert (root.get("role"), root.get("width")) == ("img", str(width))
            told = {node.get("id"): node.text for node in root.iter() if node.get("id")}
            assert (root.get("aria-labelledby") or "").split() == ["a-key-title", "a-key-words"]
            assert (told["a-key-title"], told["a-key-words"]) == (chart.title, chart.words)
            used = set(re.findall(r"#([\w-]+)", drawn))
            assert used <= told.keys()
            assert not re.search(r"#[0-9a-f]{6}|https?:|<style|<metadata|font", drawn)
            assert draw_svg(chart, width, "a-key") == drawn, "the same again"
            others = re.findall(' id="([^"]+)"', draw_svg(chart, width, "b-key"))
            assert not set(others) & told.keys()
        assert draw_png(chart).startswith(b"\x89PNG\r\n\x1a\n")
        assert draw_png(chart) == draw_png(chart)


def test_texts_of_other_people_are_shown_as_they_are() -> None:
    bar = Bar(HOSTILE, 5.0, 4.0, 7.0, 0, HOSTILE)
    line = replace(CURVE, name=HOSTILE)
    for chart in (
        replace(BARS, bars=(bar,), title=HOSTILE, words=HOSTILE, unit=HOSTILE),
        replace(LINES, lines=(line,), x=Axis(HOSTILE, names=(HOSTILE,) * 3), y=Axis(HOSTILE)),
    ):
        root = ElementTree.fromstring(draw_svg(chart, WIDE, "k"))
        assert "script" not in {node.tag for node in root.iter()}
        shown = " ".join(root.itertext())
        assert "<script>alert(1)</script> $x_1$ ]]> \\x1b[31m \\u202e" in shown
        assert draw_png(chart)


def test_a_long_curve_keeps_its_extremes_and_gaps() -> None:
    points = [(float(x), 1.0) for x in range(10_000)]
    points[4321], points[7777], points[9000] = (4321.0, 99.0), (7777.0, -99.0), (9000.0, None)
    kept = extremes(tuple(points), 600)
    assert len(kept) <= 620
    assert {points[0], points[4321], points[7777], points[9000], points[-1]} <= set(kept)
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_names_are_wrapped_and_cut_at_the_end() -> None:
    lines = wrapped("one two " + "x" * 200, 100.0, 3)
    assert lines[0] == "one two"
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert all(text_width(line) <= 100.0 for line in lines)


@pytest.mark.parametrize("theme", [0, 1])
def test_every_colour_stands_out_from_its_background(theme: int) -> None:
    """WCAG 2.2: 3 to 1 for graphics (1.4.11), 4.5 to 1 for text (1.4.3)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    colours = {name: pair[theme] for name, pair in styles.COLOURS.items()}
    page = luminance(colours.pop("page"))
    del colours["grid"]
    for name, colour in colours.items():
        dark, light = sorted((luminance(colour), page))
        assert (light + 0.05) / (dark + 0.05) >= (4.5 if name in ("ink", "quiet", "alarm") else 3.0), colour


def test_no_two_series_differ_by_colour_alone() -> None:
    looks = [(styles.dash(style), styles.marker(style)) for style in range(30)]
    assert len(set(looks)) == 30
    parts = [(styles.colour(style), styles.shade(style)) for style in range(18)]
    assert len(set(parts)) == 18
