"""Charts of evaluations: what they draw is what was measured, in every form."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.output.draw import HALF, figure_of
from isotrain.albert_core.output.run_chart import as_page, as_text, evaluation_chart
from isotrain.albert_core.runs.history import evaluations
from support.small_pairs import write_pairs

Run = Callable[..., TrainResult]

ROWS = [{"step": 10 * n, "epoch": n, "a": value, "b": 1 - value} for n, value in enumerate((0.2, 0.5, 0.35, 0.8), 1)]


def test_every_value_is_drawn_where_it_belongs() -> None:
    chart = evaluation_chart(ROWS, ["a", "b"], "mine <&> yours")
    (axes,) = figure_of(chart, HALF).axes
    for line, name in zip(axes.lines, ("a", "b"), strict=True):
        assert list(line.get_xdata()) == [1, 2, 3, 4]
        assert list(line.get_ydata()) == [row[name] for row in ROWS]
    page = as_page(chart)
    assert "<h1>mine &lt;&amp;&gt; yours</h1>" in page
    for row in ROWS:
        assert f"<td>{row['a']:.4f}</td><td>{row['b']:.4f}</td>" in page


def test_the_text_chart_marks_the_values_rows() -> None:
    lines = as_text(evaluation_chart(ROWS, ["a"], "title"), width=31, height=9).splitlines()
    levels = [float(line.split("|")[0]) for line in lines[1:10]]
    for row in ROWS:
        column = round((row["step"] - 10) / 30 * 30)
        (marked,) = [
            level for level, line in zip(levels, lines[1:10], strict=True) if line[10:][column : column + 1] == "*"
        ]
        assert marked == pytest.approx(row["a"], abs=(levels[0] - levels[1]) / 2 + 1e-9)
    assert "epoch" in lines[-1]
    assert "* a" in lines[-1]


def test_evaluations_within_an_epoch_go_by_step() -> None:
    rows = [row | {"epoch": 1} for row in ROWS]
    chart = evaluation_chart(rows, ["a"], "t")
    assert (chart.x.label, [x for x, _ in chart.lines[0].points]) == ("step", [10, 20, 30, 40])
    chart = evaluation_chart(ROWS, ["a"], "t")
    assert (chart.x.label, [x for x, _ in chart.lines[0].points]) == ("epoch", [1, 2, 3, 4])


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [math.nan, 0.3], [math.nan], [math.inf, 0.1, 1e6]])
def test_odd_values_are_drawn_as_far_as_they_can_be(values: list[float]) -> None:
    rows: list[dict[str, Any]] = [{"step": n, "epoch": n, "a": value} for n, value in enumerate(values)]
    chart = evaluation_chart(rows, ["a"], "t")
    assert as_text(chart).count("\n") > 10
    page = as_page(chart)
    assert page.count("<td>not finite</td>") == sum(not math.isfinite(value) for value in values)
    assert len(re.findall("<use [^>]*y=", page)) >= sum(map(math.isfinite, values))


def test_a_run_draws_what_it_evaluated(run: Run, tmp_path: Path) -> None:
    job = {"dataset_id": str(write_pairs(tmp_path / "pairs")), "chart": ["eval/accuracy", "eval/f1"]}
    result = run(num_epochs=3, **job)
    page = (result.run.path / "chart.html").read_text()
    rows = evaluations(result.run)
    assert len(rows) == 3
    for row in rows:
        assert f"<td>{row['eval/accuracy']:.4f}</td><td>{row['eval/f1']:.4f}</td>" in page
    assert "random weights" in page
    assert not re.search(r"<script|src=|href=\"(?!#)", page), "the page needs nothing beside it"
    assert (result.run.path / "chart.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_metric_that_is_none_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match="chart 'eval/f1' is no metric"):
        run(chart=["eval/accuracy", "eval/f1"])
