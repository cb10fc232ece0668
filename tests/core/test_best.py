"""One meaning of "best": in the store, the state, the summary, the table and for predict."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isotrain.albert_core.config.best import Best
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.train import TrainResult, train
from isotrain.albert_core.runs.folder import RunFolder
from isotrain.albert_core.runs.history import best_evaluation, evaluations
from support.small_job import metrics

pytestmark = pytest.mark.core

Run = Callable[..., TrainResult]

EVERY_FOUR = {"save_strategy": "step", "steps_freq": 4, "val_steps_freq": 4}


def scores(result: TrainResult, metric: str) -> dict[int, float]:
    return {item["step"]: item[metric] for item in metrics(result) if metric in item}


def summary(result: TrainResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.run.summary.read_text())
    return found


def checkpoints(result: TrainResult) -> list[str]:
    return sorted(path.name for path in result.run.checkpoints.glob("step-*"))


def test_ranks_lowest_or_highest_earliest_first_and_never_nan() -> None:
    values = (0.5, math.nan, 0.9, 0.9, 0.1)
    found = [{"step": float(step), "eval/f1": value} for step, value in enumerate(values, start=1)]
    unmeasured = [{"step": 0.0, "eval/loss": 0.0}]
    order = [item["step"] for item in Best.by("eval/f1").rank(found + unmeasured, dict)]
    assert order == [3, 4, 1, 5]
    assert [item["step"] for item in Best.by("eval/f1", "min").rank(found, dict)] == [5, 1, 3, 4]
    assert Best.by("eval/f1").first(reversed(found)) == {"step": 3, "eval/f1": 0.9}
    assert Best.by("eval/loss").first(found) == {}
    assert (Best.by("eval/rmse").mode, Best.by("eval/pearsonr").mode) == ("min", "max")
    assert (Best.by("eval/accuracy").words, Best.by("eval/loss", "max").words) == (
        "best by accuracy",
        "best by loss (max)",
    )


def test_files_of_runs_from_before_a_metric_got_its_name_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "task: regression\ncheckpoint_metric: eval/spearman\nchart: [eval/pearson, eval/loss]\n"
    )
    config = load_config(folder / "config.yaml").config
    assert (config.best, config.chart) == (Best("eval/spearmanr", "max"), ["eval/pearsonr", "eval/loss"])
    assert Best.of({"checkpoint_metric": "eval/spearman", "checkpoint_metric_mode": None}) == config.best
    lines = [{"step": step, "eval/loss": 1.0, "eval/spearman": value} for step, value in ((1, 0.1), (2, 0.3), (3, 0.2))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = RunFolder(folder)
    assert evaluations(run)[0]["eval/spearmanr"] == 0.1
    held = {"step": 4.0, "eval/spearman": 0.4}
    assert best_evaluation(run, config.best)["step"] == 2
    assert best_evaluation(run, config.best, [held]) == {"step": 4.0, "eval/spearmanr": 0.4}


@pytest.mark.parametrize("part", [{}, {"keep_last_n": 1, "save_optim": False}, {"keep_last_n": 0}])
def test_a_resume_with_another_metric_agrees_everywhere_on_what_is_best(run: Run, part: dict[str, Any]) -> None:
    keys = EVERY_FOUR | {"learning_rate": 0.3, "keep_best_n": 1} | part
    first = run(stop_at_step=12, run_name="changed", checkpoint_metric="eval/loss", **keys)
    changed = ["checkpoint_metric=eval/accuracy", "stop_at_step=null"]
    result = train(load_config(first.run.config, changed), resume=first.run)
    scored = scores(result, "eval/accuracy")
    best = max(scored, key=lambda step: (scored[step], -step))
    assert result.best_by == Best("eval/accuracy", "max")
    assert (result.best["step"], result.best["eval/accuracy"]) == (best, scored[best])
    assert summary(result)["best"]["step"] == best
    assert summary(result)["best_by"] == {"metric": "eval/accuracy", "mode": "max"}
    held = {int(name[5:13]): name for name in checkpoints(result)}
    assert summary(result)["best_checkpoint"] == held.get(best)
    of_those_left = max(held, key=lambda step: (scored[step], -step))
    chosen = load_predictor(result.run, checkpoint="best")
    newest = load_predictor(result.run, checkpoint=str(result.run.checkpoints / held[of_those_left]))
    assert chosen.predict(["lost card"]) == newest.predict(["lost card"])
    # What is written down is what was set, so the next metric decides about its own mode too.
    assert load_config(result.run.config, ["checkpoint_metric=eval/loss"]).config.best == Best("eval/loss", "min")


def test_a_mode_that_was_set_stays_set(run: Run) -> None:
    first = run(stop_at_step=4, checkpoint_metric="eval/accuracy", checkpoint_metric_mode="min")
    assert load_config(first.run.config, ["checkpoint_metric=eval/f1_macro"]).config.best.mode == "min"


@pytest.mark.parametrize("strategy", ["epoch", "step"])
def test_the_best_evaluation_between_saves_is_saved(run: Run, strategy: str) -> None:
    result = run(save_strategy=strategy, steps_freq=9, val_steps_freq=5, keep_last_n=1, learning_rate=0.3, num_epochs=3)
    scored = scores(result, "eval/loss")
    best = min(scored, key=lambda step: scored[step])
    assert summary(result)["best_checkpoint"] == f"step-{best:08d}"
    assert f"step-{best:08d}" in checkpoints(result)


def test_a_best_evaluation_that_no_checkpoint_holds_is_said(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("isotrain"), "propagate", True)
    # The highest loss counts as best, which is that of the first evaluation.
    result = run(save_strategy="step", val_steps_freq=2, steps_freq=8, keep_best_n=0, checkpoint_metric_mode="max")
    assert result.best["step"] == 2
    assert (result.best_checkpoint, summary(result)["best_checkpoint"]) == (None, None)
    load_predictor(result.run, checkpoint="best")
    (said,) = [record.getMessage() for record in caplog.records if "no checkpoint holds" in record.getMessage()]
    assert "best by loss (max), step 2 " in said
    assert "step-00000008" in said


def test_evaluations_that_only_a_checkpoint_remembers_count(run: Run) -> None:
    first = run(stop_at_step=12, checkpoint_metric="eval/loss", **EVERY_FOUR)
    scored = scores(first, "eval/accuracy")
    first.run.metrics.unlink()
    again = run(resume=first.run, checkpoint_metric="eval/accuracy", **EVERY_FOUR)
    assert again.best["eval/accuracy"] >= max(scored[step] for step in (4, 8, 12))
