"""Training on the TPU backend: the CPU backend's losses, no program after the first epoch, exact resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop import train as loop
from isotrain.albert_core.loop.train import TrainResult
from isotrain.backends.tpu import TpuBackend
from isotrain.kernels.packed import PaddedBatch
from support.recipe_checks import check_losses, run_recipe
from support.small_job import losses
from support.small_recipes import RECIPES
from support.small_runs import Run, check_resume
from support.tables import show

WHOLE = {"freeze_encoder": False, "learning_rate": 1e-3, "layout": "bucketed"}


def worst(result: TrainResult, reference: TrainResult) -> float:
    """The largest relative difference between two runs' losses, log line by log line."""
    pairs = list(zip(losses(result), losses(reference), strict=True))
    assert all(got[0] == want[0] for got, want in pairs)
    return max(abs(got[1] - want[1]) / abs(want[1]) for got, want in pairs)


@pytest.mark.parametrize(
    "job",
    [{"layout": "bucketed"}, WHOLE, WHOLE | {"torch_compile": "default"}],
    ids=["head", "whole model", "compiled"],
)
def test_losses_over_30_steps_are_the_cpu_backends(
    run: Run, job: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    job = {"num_epochs": 3, "max_steps": 30, "steps_freq": 1, "warmup_ratio": 0.1} | job
    result, reference = run(**job), run(**job | {"backend": "cpu", "torch_compile": None})
    assert len(losses(result)) == 30
    found = worst(result, reference)
    title = "losses of tpu (torch_tpu on XLA's CPU device) against cpu's, float32, 30 steps"
    show(title, ("trained", "worst, relative"), [(request.node.callspec.id, f"{found:.1e}")])
    assert found <= 5e-6


@pytest.mark.parametrize(
    "changed",
    [{"optim": "adamw_torch"}, {"optim": "sgd"}, {"optim": "rmsprop"}, {"torch_compile": "default"}],
    ids=lambda changed: next(iter(changed.values())),
)
def test_no_step_after_the_first_epoch_compiles(
    run: Run, backend: Any, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    step = loop.optimizer_step

    def counting(*args: Any) -> torch.Tensor:
        counts.append(backend.compile_count())
        return step(*args)

    monkeypatch.setattr(loop, "optimizer_step", counting)
    # A warm-up begins at 0, 90 texts end an epoch with a batch of 2, and the schedule changes the rate at every step.
    job = WHOLE | {"num_epochs": 3, "warmup_ratio": 0.2, "lr_scheduler_type": "cosine", "momentum": 0.9}
    result = run(**job, **changed)
    assert result.status == "completed"
    assert len(counts) == 36
    assert backend.compile_count() == counts[12]


def test_a_compiled_step_has_few_programs_for_each_batch_shape_and_no_others(
    run: Run, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's graph, the device's programs of it, and an operator or two; in the first step, those of no shape, too."""
    shapes: list[tuple[int, ...]] = []
    counts: list[int] = []
    compiled, step = TpuBackend.compile, loop.optimizer_step

    def watched(self: TpuBackend, fn: Any, mode: str | None = None) -> Any:
        program = compiled(self, fn, mode)

        def call(*inputs: Any) -> Any:
            shapes.extend(one.input_ids.shape for one in inputs if isinstance(one, PaddedBatch))
            return program(*inputs)

        return program if mode is None else call

    def counting(*args: Any) -> torch.Tensor:
        backend.synchronize()
        before = backend.compile_count()
        sums = step(*args)
        backend.synchronize()
        counts.append(backend.compile_count() - before)
        return sums

    monkeypatch.setattr(TpuBackend, "compile", watched)
    monkeypatch.setattr(loop, "optimizer_step", counting)
    # A head as no other test has, or its programs are there already.
    run(**WHOLE | {"torch_compile": "default", "mlp_hidden_size": 24, "batch_size": 2, "max_steps": 12})
    assert len(shapes) == len(counts) == 12
    assert len(set(shapes)) > 1
    new = [shape not in shapes[:at] for at, shape in enumerate(shapes)]
    assert [count > 0 for count in counts] == new
    assert max(counts[1:]) <= 5


@pytest.mark.parametrize("optim", ["adamw_torch", "adam"])
def test_a_weight_without_a_gradient_survives_a_warm_ups_first_rate(run: Run, optim: str) -> None:
    """The rate is 0 there, and words that the first batch lacks have no gradient."""
    job = WHOLE | {"num_epochs": 1, "warmup_ratio": 0.2, "optim": optim, "steps_freq": 1}
    assert worst(run(**job), run(backend="cpu", **job)) <= 1e-5


@pytest.mark.parametrize(
    "job", [{}, WHOLE, WHOLE | {"torch_compile": "default"}], ids=["head", "whole model", "compiled"]
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(run: Run, job: dict[str, Any]) -> None:
    check_resume(run, **job)


def test_a_run_says_what_it_ran_on_and_its_model_predicts_alike_on_the_cpu(run: Run) -> None:
    trained = run()
    assert "tpu (torch_tpu on XLA's CPU device): every time and speed" in (trained.run.path / "train.log").read_text()
    texts = ["lost card", "mortgage interest rate of my loan", "reset the password"]
    here = load_predictor(trained.run).predict(texts)
    there = load_predictor(trained.run, backend="cpu").predict(texts)
    assert [item.label for item in here] == [item.label for item in there]
    assert [item.probability for item in here] == pytest.approx([item.probability for item in there], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_gives_the_cpu_backends_losses(backend: Any, tmp_path: Path, recipe: str) -> None:
    result, reference = (run_recipe(recipe, tmp_path, name) for name in ("tpu", "cpu"))
    check_losses(result, reference)
    assert result.metrics == pytest.approx(reference.metrics, rel=1e-4)
