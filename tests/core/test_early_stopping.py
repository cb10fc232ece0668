"""Early stopping, judged by transformers' own callback; and an evaluation before the first step."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.best import Best
from isotrain.albert_core.config.load import ResolvedConfig, load_config
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.state import TrainingState
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.processes.signals import StopRequest
from isotrain.albert_core.runs.history import evaluations
from support.command import Invoke
from support.small_job import losses, metrics
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

Run = Callable[..., TrainResult]
Configure = Callable[..., ResolvedConfig]

# A learning rate so high that the loss does not fall at every evaluation.
STOPPING: dict[str, Any] = {
    "learning_rate": 0.3,
    "num_epochs": 8,
    "val_steps_freq": 3,
    "early_stopping_patience": 3,
    "checkpoint_metric": "eval/accuracy",
}


class Arguments:
    """What the callback reads of TrainingArguments."""

    def __init__(self, mode: str) -> None:
        self.greater_is_better = mode == "max"
        self.metric_for_best_model = "loss"


def callback_stops(values: Iterable[float], mode: str, patience: int, threshold: float) -> int | None:
    """After how many evaluations Trainer stops. It takes note of the best only after its callbacks were called."""
    callback = EarlyStoppingCallback(patience, threshold)
    arguments, state, control = Arguments(mode), TrainerState(), TrainerControl()
    for number, value in enumerate(values, start=1):
        callback.on_evaluate(arguments, state, control, {"eval_loss": value})
        if control.should_training_stop:
            return number
        best = state.best_metric
        if best is None or (value > best if mode == "max" else value < best):
            state.best_metric = value
    return None


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize("patience", [1, 3])
def test_the_count_is_transformers_own(mode: Any, threshold: float, patience: int) -> None:
    stops = []
    for seed in range(60):
        draw = random.Random(seed)
        values = [round(draw.uniform(0, 1), 2) if seed % 2 else 0.5 + draw.choice((0.0, 0.05, 0.06)) for _ in range(12)]
        state, ours = TrainingState(torch.zeros(2)), None
        for number, value in enumerate(values, start=1):
            state.step = number
            state.record_evaluation({"eval/loss": value}, Best("eval/loss", mode), threshold)
            if state.unimproved >= patience:
                ours = number
                break
        assert ours == callback_stops(values, mode, patience, threshold), values
        stops.append(ours)
    assert len(set(stops)) > 2


def evaluated(result: TrainResult, metric: str = "eval/accuracy") -> dict[int, float]:
    return {row["step"]: row[metric] for row in metrics(result) if metric in row}


def test_a_run_stops_there_is_complete_and_says_why(run: Run, invoke: Invoke) -> None:
    whole = run(run_name="whole", **STOPPING | {"early_stopping_patience": None})
    scored = evaluated(whole)
    number = callback_stops(scored.values(), "max", 3, 0.0)
    assert number is not None
    step = list(scored)[number - 1]
    result = run(run_name="early", **STOPPING)
    assert (result.status, result.step) == ("completed", step)
    assert step < result.total_steps
    assert evaluated(result) == dict(list(scored.items())[:number])
    assert result.early_stop.startswith("eval/accuracy has not improved in 3 evaluations; the best was ")
    summary = json.loads(result.run.summary.read_text())
    assert (summary["status"], summary["step"], summary["early_stop"]) == ("completed", step, result.early_stop)
    assert json.loads(whole.run.summary.read_text())["early_stop"] is None
    (event,) = [row for row in metrics(result) if row.get("event") == "early_stop"]
    assert event == {"step": step, "event": "early_stop", "reason": result.early_stop}
    assert f"stopped early at step {step} of 96: {result.early_stop}" in (result.run.path / "train.log").read_text()
    assert load_predictor(result.run).predict(["lost card"])
    assert load_predictor(result.run, checkpoint="best").predict(["lost card"])
    # The weights it ended with can be gone on from.
    assert (result.run.checkpoints / f"step-{step:08d}").is_dir()
    code, out, _ = invoke("show", str(result.run.path))
    assert code == 0
    assert f"stopped early: {result.early_stop}" in out


def test_a_threshold_counts_smaller_gains_as_none(run: Run) -> None:
    keys = STOPPING | {"learning_rate": 1e-3, "checkpoint_metric": "eval/loss", "early_stopping_patience": 2}
    result = run(**keys, early_stopping_threshold=0.5)
    assert result.step == 9
    assert result.early_stop.startswith("eval/loss has not improved by more than 0.5 in 2 evaluations")
    assert result.best["step"] == 9, "smaller gains are still the best"


@pytest.mark.parametrize("save", ["step", "no"])
def test_a_resume_keeps_the_count(run: Run, save: str) -> None:
    keys = STOPPING | {"save_strategy": save, "steps_freq": 4}
    straight = run(run_name="straight", **keys)
    saved = list(straight.run.checkpoints.glob("step-*"))
    assert bool(saved) == (save == "step")
    for stop in (straight.step - 1, straight.step - 4):
        run(run_name=f"cut-{stop}", **keys, stop_at_step=stop)
        again = run(run_name=f"cut-{stop}", **keys, resume_from_checkpoint=True)
        assert (again.status, again.step, again.early_stop) == ("completed", straight.step, straight.early_stop)
        assert evaluated(again) == evaluated(straight)


def test_a_run_that_stopped_early_goes_on_only_with_more_patience(run: Run) -> None:
    first = run(run_name="mine", **STOPPING)
    nothing = run(run_name="mine", **STOPPING, resume_from_checkpoint="auto")
    assert (nothing.before, nothing.step, nothing.early_stop) == (True, first.step, first.early_stop)
    again = run(resume=first.run, **STOPPING)
    assert (again.status, again.step, again.early_stop) == ("completed", first.step, first.early_stop)
    longer = run(resume=first.run, **STOPPING | {"early_stopping_patience": 5})
    whole = run(run_name="straight", **STOPPING | {"early_stopping_patience": 5})
    assert longer.step == whole.step > first.step
    rest = [[row for row in losses(one) if row[0] > first.step] for one in (longer, whole)]
    assert rest[0] == rest[1]


def test_another_metric_begins_to_count_anew(run: Run) -> None:
    first = run(**STOPPING, stop_at_step=12)
    again = run(resume=first.run, **STOPPING | {"checkpoint_metric": "eval/loss"})
    scored = evaluated(again, "eval/loss")
    before = min(loss for step, loss in scored.items() if step <= 12)
    later = [loss for step, loss in scored.items() if step > 12]
    number = callback_stops([before, *later], "min", 3, 0.0)
    assert again.step == (96 if number is None else 12 + 3 * (number - 1))


def test_a_stop_of_the_last_step_is_no_early_one(run: Run) -> None:
    early = run(run_name="early", **STOPPING)
    result = run(**STOPPING | {"max_steps": early.step})
    assert (result.status, result.early_stop) == ("completed", "")


def test_a_threshold_without_patience_is_refused() -> None:
    with pytest.raises(UserError, match="early_stopping_threshold needs early_stopping_patience"):
        load_config(None, ["early_stopping_threshold=0.1"])


def shown(result: TrainResult) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if "second" not in name} for row in metrics(result)]


def test_an_evaluation_before_the_first_step_changes_nothing_else(run: Run, tmp_path: Path) -> None:
    keys = {"chart": ["eval/accuracy"], "early_stopping_patience": 1, "checkpoint_metric": "eval/accuracy"}
    plain, result = run(run_name="plain", **keys), run(run_name="first", eval_on_start=True, **keys)
    first, *rest = shown(result)
    assert rest == shown(plain)
    assert (first["step"], first["epoch"]) == (0, 0)
    assert "train/loss_since_evaluation" not in first
    untrained = run(run_name="untrained", max_steps=1, learning_rate=1e-30)
    assert first["eval/loss"] == pytest.approx(untrained.metrics["eval/loss"], rel=1e-6)
    assert result.best == plain.best
    assert next(row["step"] for row in evaluations(result.run)) == 0
    log = (result.run.path / "train.log").read_text()
    assert log.index("evaluations of") < log.index("0           -")
    assert (result.run.path / "chart.html").is_file()


def test_an_evaluation_before_the_first_step_is_never_the_best(run: Run) -> None:
    keys = {"eval_on_start": True, "learning_rate": 1.0, "checkpoint_metric_mode": "max", "save_strategy": "step"}
    # The loss of the first weights would be the lowest, and the run resumes with the metric that makes it the best.
    first = run(**keys, stop_at_step=12)
    scored = evaluated(first, "eval/loss")
    assert scored[0] < scored[12]
    again = run(resume=first.run, **keys | {"checkpoint_metric_mode": "min"})
    assert again.best["step"] >= 12


def test_a_resume_does_not_evaluate_at_the_start_again(run: Run) -> None:
    keys = {"eval_on_start": True, "save_strategy": "step"}
    straight = run(run_name="straight", **keys)
    run(run_name="cut", **keys, stop_at_step=6)
    again = run(run_name="cut", resume_from_checkpoint=True, **keys)
    assert shown(again) == shown(straight)


def test_a_stop_during_the_first_evaluation_can_be_resumed(
    run: Run, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run(run_name="straight", eval_on_start=True)
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "requested", True, raising=False)
        stopped = run(run_name="cut", eval_on_start=True)
    assert (stopped.status, stopped.step) == ("stopped", 0)
    again = run(run_name="cut", eval_on_start=True, resume_from_checkpoint=True)
    assert again.status == "completed"
    assert shown(again) == shown(straight)
