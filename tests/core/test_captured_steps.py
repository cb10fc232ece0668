"""A training run whose backend records the optimizer's steps and replays them, as CUDA graphs do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from isotrain.albert_core.loop import start
from isotrain.albert_core.loop.train import TrainResult
from isotrain.backends.cpu import CpuBackend
from isotrain.backends.cuda.graphs import CapturedStep
from support.recorded_graph import RecordedGraph
from support.small_job import losses, metrics


class RecordingBackend(CpuBackend):
    """Records every step that it is given."""

    fails = False

    def __init__(self, index: int | None = None) -> None:
        super().__init__(index)
        self.captures: list[RecordedGraph] = []

    def head_step(self, parameters: Any, optimizer: Any) -> None:
        """None: this device has no fused step."""

    def capture_step(self, step: Callable[..., Any], optimizer: Any) -> Callable[..., Any]:
        self.captures.append(RecordedGraph(self.fails))
        return CapturedStep(step, optimizer, self.captures[-1])


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> RecordingBackend:
    backend = RecordingBackend()
    monkeypatch.setattr("isotrain.albert_core.loop.job.get_backend", lambda *_: backend)
    return backend


@pytest.mark.parametrize(
    "options",
    [
        {"lr_scheduler_type": "linear", "warmup_steps": 3, "max_grad_norm": 1.0},
        {"gradient_accumulation_steps": 3, "batch_size": 4},
        {"feature_cache": False},
        {"class_weights": [3, 1, 0.5, 1, 2, 1], "label_smoothing_factor": 0.1, "batch_size": 4},
    ],
    ids=lambda options: next(iter(options)),
)
def test_recorded_training_has_the_losses_of_plain_training(
    options: dict[str, Any], run: Callable[..., TrainResult], request: pytest.FixtureRequest
) -> None:
    plain = run(run_name="plain", fused_head=False, **options)
    backend = request.getfixturevalue("recording")
    recorded = run(run_name="recorded", **options)
    (capture,) = backend.captures
    assert capture.events.count("replay") > 10
    assert [step for step, _ in losses(plain)] == [step for step, _ in losses(recorded)]
    for (_, expected), (_, loss) in zip(losses(plain), losses(recorded), strict=True):
        # The learning rate is rounded to float32.
        assert loss == pytest.approx(expected, rel=1e-4)
    assert recorded.metrics == pytest.approx(plain.metrics, rel=1e-3)


def test_a_recorded_run_is_resumed_bit_for_bit(run: Callable[..., TrainResult], recording: RecordingBackend) -> None:
    straight = run(run_name="straight", save_strategy="step")
    stopped = run(run_name="halves", save_strategy="step", stop_at_step=8)
    resumed = run(resume=stopped.run, save_strategy="step", resume_from_checkpoint=True)
    assert resumed.step == straight.step
    assert losses(resumed) == losses(straight)
    assert resumed.metrics == straight.metrics


def test_every_logged_gradient_norm_is_its_own_steps(run: Callable[..., TrainResult], request: Any) -> None:
    """Each epoch ends with a smaller batch, which has a graph of its own."""
    options = {"max_grad_norm": 1.0, "steps_freq": 1, "batch_size": 8, "num_epochs": 4}
    plain = run(run_name="plain", **options)
    backend = request.getfixturevalue("recording")
    recorded = run(run_name="recorded", **options)
    assert backend.captures[0].events.count("replay") > 10
    expected, found = (
        [row["train/gradient_norm"] for row in metrics(result) if "train/loss" in row] for result in (plain, recorded)
    )
    assert found == pytest.approx(expected, rel=1e-3)
    assert len(set(found)) == len(found)


def test_training_goes_on_where_nothing_can_be_captured(
    run: Callable[..., TrainResult], recording: RecordingBackend
) -> None:
    recording.fails = True
    failed = run(run_name="failed", max_grad_norm=1.0)
    assert recording.captures[0].events[-1] == "capture"
    assert "replay" not in recording.captures[0].events
    assert (failed.run.path / "train.log").read_text().count("without CUDA graphs") == 1
    recording.fails = False
    recorded = run(run_name="recorded", max_grad_norm=1.0)
    assert "replay" in recording.captures[1].events
    assert failed.metrics == pytest.approx(recorded.metrics, rel=1e-3)


WHOLE = {"freeze_encoder": False, "num_epochs": 2, "steps_freq": 1, "head_dropout": 0.1}


@pytest.mark.parametrize("layout", ["dynamic", "bucketed", "padded"])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.5, "gradient_accumulation_steps": 2, "batch_size": 8}])
def test_recorded_steps_of_a_whole_model_are_those_of_plain_training(
    options: dict[str, Any], layout: str, run: Callable[..., TrainResult], request: pytest.FixtureRequest
) -> None:
    plain = run(run_name="plain", layout=layout, **WHOLE, **options)
    backend = request.getfixturevalue("recording")
    recorded = run(run_name="recorded", layout=layout, **WHOLE, **options)
    (capture,) = backend.captures
    assert capture.events.count("replay") > 3
    for key in ("train/loss", "train/gradient_norm"):
        expected, found = ([row[key] for row in metrics(one) if key in row] for one in (plain, recorded))
        assert found == pytest.approx(expected, rel=1e-4)
        assert len(set(found)) == len(found)
    assert recorded.metrics == pytest.approx(plain.metrics, rel=1e-3)


def test_recorded_steps_of_a_whole_model_are_resumed_bit_for_bit(
    run: Callable[..., TrainResult], recording: RecordingBackend
) -> None:
    options: dict[str, Any] = {**WHOLE, "layout": "bucketed", "save_strategy": "step"}
    straight = run(run_name="straight", **options)
    stopped = run(run_name="halves", stop_at_step=5, **options)
    resumed = run(resume=stopped.run, resume_from_checkpoint=True, **options)
    assert "replay" in recording.captures[-1].events
    assert losses(resumed) == losses(straight)
    assert resumed.metrics == straight.metrics


def test_a_hook_of_the_model_sees_every_step(
    run: Callable[..., TrainResult], recording: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, seen = start.make_step, []

    def hooked(training: Any) -> Callable[..., Any]:
        training.model.head.register_forward_pre_hook(lambda *_: seen.append(training.model.training))
        return made(training)

    monkeypatch.setattr(start, "make_step", hooked)
    result = run(layout="bucketed", **WHOLE)
    assert sum(seen) == result.step > 10
    assert recording.captures[0].events == []


@pytest.mark.parametrize(
    "options",
    [
        {"freeze_encoder": False},
        {"freeze_encoder": False, "layout": "bucketed", "gradient_checkpointing": True},
        {"use_wandb": True, "wandb_watch_mode": "gradients"},
    ],
    ids=["packed", "recomputed", "watched"],
)
def test_steps_that_cannot_be_repeated_are_not_recorded(
    options: dict[str, Any], run: Callable[..., TrainResult], recording: RecordingBackend, monkeypatch: Any
) -> None:
    wandb = "isotrain.albert_core.output.trackers.wandb.WandbTracker"
    monkeypatch.setattr(wandb, lambda *_: (_ for _ in ()).throw(ImportError()))
    run(num_epochs=1, max_steps=3, **options)
    assert not any(capture.events for capture in recording.captures)
