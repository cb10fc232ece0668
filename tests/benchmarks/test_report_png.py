"""The report's charts as PNG files: the same data, the same labels."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.albert_core.output.charts import Axis, Bar, BarChart, Line, LineChart, Stack, StackedChart
from isotrain.benchmarks.reports.html import png
from isotrain.benchmarks.reports.html.write import write_report
from isotrain.kernels.install import install_hint

BARS = BarChart("bars", "Bars · random weights", "w", "samples/s", (Bar("a $1", 5.0, 4.0, 7.0, 0, "invalid", True),))
PARTS = (Stack("a", {"x": 1.0, "y": 2.0}), Stack("b", {"y": 3.0}))
STACKS = StackedChart("stacks", "t", "w", "seconds", ("x", "y"), PARTS)
CURVE = Line("cpu", ((1.0, 3.0), (2.0, None), (3.0, 0.0)), 1)
LINES = LineChart("lines", "t", "w", Axis("step"), Axis("loss", log=True), (CURVE,))


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is drawn on, as far as anything was drawn."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e '.[plots]'")
    known: list[Any] = []
    canvas = png._canvas

    def watched(height: float) -> Any:
        figure, axes = canvas(height)
        known.append(axes)
        return figure, axes

    monkeypatch.setattr(png, "_canvas", watched)
    return known


def test_every_chart_of_the_page_becomes_a_file(axes: list[Any], results_folder: Path, tmp_path: Path) -> None:
    written = write_report(results_folder, tmp_path / "report.html", tmp_path / "deep" / "charts")
    assert len(written.pictures) == written.charts == len(axes) == 16
    page = written.page.read_text(encoding="utf-8")
    for path, drawn in zip(written.pictures, axes, strict=True):
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert f'<figure id="{path.stem}"' in page
        assert drawn.figure.get_suptitle() in page


def test_bars_have_their_values_intervals_and_words(axes: list[Any]) -> None:
    png.draw_png(BARS)
    (bar,) = axes[0].patches
    assert bar.get_width() == 5.0
    assert bar.get_hatch() == "///"
    (whisker,) = axes[0].containers[1][2][0].get_segments()
    assert [x for x, _ in whisker] == [4.0, 7.0]
    assert axes[0].get_yticklabels()[0].get_text() == "a \\$1 (invalid)\n5 (4 to 7)"
    assert axes[0].get_xlabel() == "samples/s"


def test_a_legend_says_what_colours_and_hatches_mean(axes: list[Any]) -> None:
    bars = (
        Bar("a", 5.0, 4.0, 7.0, 0),
        Bar("b", 3.0, 2.0, 4.0, 1, "invalid", True),
        Bar("c", words="failed", empty=True),
    )
    png.draw_png(BarChart("bars", "t", "w", "samples/s", bars, ("forward", "train_step")))
    (legend,) = axes[0].figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["forward", "train_step", "hatched: invalid, to be used for nothing"]
    assert [bool(patch.get_hatch()) for patch in legend.get_patches()] == [False, False, True]
    assert [bool(bar.get_hatch()) for bar in axes[0].patches] == [False, True]
    assert axes[0].get_yticklabels()[2].get_text() == "c (failed)\nno figures"


def test_parts_stand_behind_each_other(axes: list[Any]) -> None:
    png.draw_png(STACKS)
    assert [(bar.get_x(), bar.get_width()) for bar in axes[0].patches] == [(0, 1), (0, 0), (1, 2), (0, 3)]


def test_curves_have_their_points_and_a_zero_has_its_place(axes: list[Any]) -> None:
    png.draw_png(LINES)
    (line,) = axes[0].lines
    assert list(line.get_xdata()) == [1.0, 2.0, 3.0]
    assert list(line.get_ydata())[::2] == [3.0, 0.0]
    assert axes[0].get_ylim()[0] == 0.0
    assert (axes[0].get_xlabel(), axes[0].get_ylabel(), line.get_label()) == ("step", "loss", "cpu")


def test_without_matplotlib_one_line_names_the_extra_and_nothing_is_written(
    results_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=f"--png needs matplotlib.*{re.escape(install_hint('plots'))}"):
        write_report(results_folder, tmp_path / "report.html", tmp_path / "charts")
    assert not (tmp_path / "report.html").exists()
    assert not (tmp_path / "charts").exists()
