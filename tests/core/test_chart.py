"""Charts of evaluations: what they draw is what was measured, in every form."""

from __future__ import annotations

import importlib.util
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.output.chart import Chart, as_page, as_svg, as_text, evaluation_chart
from isotrain.albert_core.runs.history import evaluations
from isotrain.kernels.install import install_hint
from support.small_pairs import write_pairs

Run = Callable[..., TrainResult]

SVG = "{http://www.w3.org/2000/svg}"
ROWS = [{"step": 10 * n, "epoch": n, "a": value, "b": 1 - value} for n, value in enumerate((0.2, 0.5, 0.35, 0.8), 1)]


def circles(chart: Chart) -> list[tuple[float, float, str]]:
    root = ElementTree.fromstring(as_svg(chart))
    return [
        (float(item.attrib["cx"]), float(item.attrib["cy"]), item.find(f"{SVG}title").text or "")
        for item in root.iter(f"{SVG}circle")
    ]


def test_every_value_is_drawn_at_its_height() -> None:
    chart = evaluation_chart(ROWS, ["a", "b"], "mine <&> yours")
    drawn = circles(chart)
    values = [row[name] for name in ("a", "b") for row in ROWS]
    assert [title for _, _, title in drawn] == [f"{n} {row[n]:.4f}" for n in ("a", "b") for row in ROWS]
    # Heights are a falling straight line over the values, places a rising one over the steps.
    (_, low, _), (_, high, _) = drawn[0], drawn[3]
    slope = (high - low) / (values[3] - values[0])
    assert slope < 0
    assert [y for _, y, _ in drawn] == pytest.approx([low + slope * (value - values[0]) for value in values], abs=0.2)
    across = [x for x, _, _ in drawn[:4]]
    assert [b - a for a, b in pairwise(across)] == pytest.approx([across[1] - across[0]] * 3, abs=0.2)
    assert "mine &lt;&amp;&gt; yours" in as_page(chart)


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
    assert evaluation_chart(rows, ["a"], "t").ticks == ["10", "20", "30", "40"]
    assert evaluation_chart(ROWS, ["a"], "t").ticks == ["1", "2", "3", "4"]


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [math.nan, 0.3], [math.nan], [math.inf, 0.1, 1e6]])
def test_odd_values_are_drawn_as_far_as_they_can_be(values: list[float]) -> None:
    rows: list[dict[str, Any]] = [{"step": n, "epoch": n, "a": value} for n, value in enumerate(values)]
    chart = evaluation_chart(rows, ["a"], "t")
    assert len(circles(chart)) == sum(map(math.isfinite, values))
    assert as_text(chart).count("\n") > 10
    low, high, step = chart.limits
    assert all(low <= value <= high for value in values if math.isfinite(value))
    assert (high - low) / step <= 8


def test_a_run_draws_what_it_evaluated(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e '.[plots]'")
    job = {"dataset_id": str(write_pairs(tmp_path / "pairs")), "chart": ["eval/accuracy", "eval/f1"]}
    result = run(num_epochs=3, **job)
    page = (result.run.path / "chart.html").read_text()
    rows = evaluations(result.run)
    assert len(rows) == 3
    for row in rows:
        assert f"<td>{row['eval/accuracy']:.4f}</td><td>{row['eval/f1']:.4f}</td>" in page
    assert "random weights" in page
    assert not re.search(r"<script|(?:src|href)=", page), "the page needs nothing beside it"
    assert (result.run.path / "chart.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    without = run(run_name="without", max_steps=2, **job)
    assert not (without.run.path / "chart.png").exists()
    assert install_hint("plots") in (without.run.path / "train.log").read_text()


def test_a_metric_that_is_none_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match="chart 'eval/f1' is no metric"):
        run(chart=["eval/accuracy", "eval/f1"])
