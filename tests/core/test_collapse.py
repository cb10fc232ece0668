"""A collapse is seen and said, and the best weights outlive it: on runs made to collapse, and on figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from isotrain.albert_core.config.load import ResolvedConfig, load_config
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.collapse import CollapseWatch
from isotrain.albert_core.loop.job import open_job
from isotrain.albert_core.loop.train import TrainResult
from sklearn.metrics import accuracy_score, log_loss
from support.small_job import metrics

Run = Callable[..., TrainResult]

# A warm-up that learns while the rate is small, and goes on to one that no encoder takes.
COLLAPSING: dict[str, Any] = {
    "freeze_encoder": False,
    "learning_rate": 0.03,
    "warmup_ratio": 0.9,
    "num_epochs": 12,
    "steps_freq": 2,
    "checkpoint_metric": "eval/accuracy",
    "save_strategy": "epoch",
    "keep_last_n": 1,
}
CHANCE = math.log(2)


def accuracy(result: TrainResult, checkpoint: str | None = None) -> float:
    predictor = load_predictor(result.run, checkpoint=checkpoint)
    data = open_job(load_config(result.run.config).config).dataset.test
    return accuracy_score(data.labels, [item.label_id for item in predictor.predict(data.texts)])


def test_a_collapsed_run_says_so_and_keeps_its_best(run: Run) -> None:
    result = run(**COLLAPSING)
    assert result.status == "completed"
    (event,) = [item for item in metrics(result) if item.get("event") == "collapse"]
    summary = json.loads(result.run.summary.read_text())
    assert summary["collapse"] == {"step": event["step"], "reason": event["reason"]}
    assert event["reason"] == result.collapse
    log = (result.run.path / "train.log").read_text()
    assert f"COLLAPSED by step {event['step']}" in log
    assert "--checkpoint best" in log
    # Of 30 texts, guessing tells 5 right, give or take 2.
    assert accuracy(result) == pytest.approx(1 / 6, abs=0.1), "six labels: this run has to have collapsed"
    assert accuracy(result, checkpoint="best") == result.best["eval/accuracy"] > 0.5


def test_stop_on_collapse_ends_the_run_there(run: Run) -> None:
    whole, ended = run(**COLLAPSING, run_name="whole"), run(**COLLAPSING, run_name="ended", stop_on_collapse=True)
    assert ended.status == "collapsed"
    at = json.loads(whole.run.summary.read_text())["collapse"]["step"]
    assert ended.step == at < whole.step
    assert json.loads(ended.run.summary.read_text())["status"] == "collapsed"
    assert not (ended.run.model / "model.safetensors").exists()
    assert accuracy(ended, checkpoint="best") == whole.best["eval/accuracy"]


@pytest.mark.parametrize("stop", [37, 60])
def test_a_resumed_run_sees_the_same_collapse(run: Run, stop: int) -> None:
    straight = run(**COLLAPSING, run_name="straight")
    cut = run(**COLLAPSING, run_name="cut", stop_at_step=stop)
    again = run(**COLLAPSING, resume=cut.run)
    assert (
        json.loads(again.run.summary.read_text())["collapse"]
        == json.loads(straight.run.summary.read_text())["collapse"]
    )
    rows = [
        [{key: value for key, value in row.items() if "second" not in key} for row in metrics(result)]
        for result in (straight, again)
    ]
    assert rows[0] == rows[1]


def test_a_run_that_learns_is_no_collapse(run: Run) -> None:
    for overrides in ({}, {"freeze_encoder": False, "learning_rate": 1e-3, "num_epochs": 12}):
        result = run(steps_freq=2, **overrides)
        assert result.collapse == ""
        assert json.loads(result.run.summary.read_text())["collapse"] is None


def test_chance_is_the_loss_of_the_labels_frequencies(configure: Callable[..., ResolvedConfig]) -> None:
    job = open_job(configure().config)
    labels = job.train_tokens.labels
    shares = np.bincount(labels) / len(labels)
    assert job.task.chance_loss(job.train_tokens) == pytest.approx(log_loss(labels, np.tile(shares, (len(labels), 1))))


def test_the_loss_of_an_evaluation_is_the_mean_since_the_one_before(run: Run) -> None:
    result = run(val_steps_freq=5, steps_freq=1)
    rows, since = metrics(result), []
    sizes = {12: 2, 24: 2}
    for row in rows:
        if "train/loss" in row:
            since.append((row["train/loss"], sizes.get(row["step"], 8)))
        if "eval/loss" in row:
            mean = sum(loss * size for loss, size in since) / sum(size for _, size in since)
            assert row["train/loss_since_evaluation"] == pytest.approx(mean, rel=1e-5)
            since = []
    seldom = run(val_steps_freq=5, steps_freq=7, run_name="seldom")
    wanted = [row["train/loss_since_evaluation"] for row in rows if "eval/loss" in row]
    got = [row["train/loss_since_evaluation"] for row in metrics(seldom) if "eval/loss" in row]
    assert got == pytest.approx(wanted, rel=1e-5)
    assert len(got) == 6


def learned_watch() -> CollapseWatch:
    watch = CollapseWatch(CHANCE)
    for step in range(20):
        assert not watch.after_log(step, 0.3, 2.0)
    assert watch.learned
    return watch


@pytest.mark.parametrize(
    ("loss", "norm", "lines", "said"),
    [
        (0.70, 2.0, 5, "training loss is back at the chance level"),
        (0.50, 2e-4, 3, "vanished"),
        (0.50, 2e4, 3, "exploded"),
        (0.30, 2e4, 3, "exploded"),
        (0.30, math.inf, 1, "norm is inf"),
        (0.30, math.nan, 1, "norm is nan"),
    ],
)
def test_log_lines_that_show_a_collapse(loss: float, norm: float, lines: int, said: str) -> None:
    watch = learned_watch()
    assert [watch.after_log(100 + line, loss, norm) for line in range(lines + 3)].index(True) == lines - 1
    assert said in watch.reason
    assert watch.step == 100 + lines - 1


def test_a_model_that_fits_its_texts_is_no_collapse() -> None:
    watch = learned_watch()
    for step in range(20, 60):
        assert not watch.after_log(step, 1e-4, 1e-6)
    # Overfitting: a high loss on other texts, many of them still classified correctly.
    assert not watch.after_evaluation(60, 1e-4, {"eval/loss": 1.5, "eval/accuracy": 0.8, "eval/largest_share": 0.6})
    assert not watch.after_log(61, 0.7, 1.0)


@pytest.mark.parametrize(
    ("learned", "figures", "found"),
    [
        (True, [(0.69, 0.70, 0.48, 1.0)], [True]),
        (True, [(0.70, 0.70, 0.52, 0.9)], [True]),
        (False, [(0.69, 0.70, 0.48, 1.0), (0.69, 0.69, 0.48, 1.0), (0.69, 0.69, 0.48, 1.0)], [False, True, False]),
        (False, [(0.69, 0.70, 0.48, 1.0), (0.6, 0.5, 0.8, 0.6), (0.69, 0.69, 0.48, 1.0)], [False, False, False]),
        (True, [(0.1, 0.1, 1.0, 1.0)], [False]),
    ],
)
def test_evaluations_that_show_a_collapse(
    learned: bool, figures: list[tuple[float, float, float, float]], found: list[bool]
) -> None:
    watch = learned_watch() if learned else CollapseWatch(CHANCE)
    seen = [
        watch.after_evaluation(step, training, {"eval/loss": loss, "eval/accuracy": right, "eval/largest_share": share})
        for step, (training, loss, right, share) in enumerate(figures)
    ]
    assert seen == found


def test_the_gradient_norm_is_logged_for_the_whole_model(run: Run) -> None:
    whole = run(freeze_encoder=False, learning_rate=1e-3, run_name="whole", max_steps=4, steps_freq=1)
    norms = [row["train/gradient_norm"] for row in metrics(whole) if "train/loss" in row]
    assert len(norms) == 4
    assert all(norm > 0 for norm in norms)
    clipped = run(freeze_encoder=False, learning_rate=1e-3, max_grad_norm=1e9, max_steps=4, steps_freq=1, run_name="c")
    assert [row["train/gradient_norm"] for row in metrics(clipped) if "train/loss" in row] == pytest.approx(norms)
    assert not any("train/gradient_norm" in row for row in metrics(run(run_name="head")))
