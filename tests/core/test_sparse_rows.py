"""The word table's gradient is sparse where the optimizer takes only the rows that a step read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from isotrain.albert_core.loop.train import TrainResult
from isotrain.backends.training.gradients import total_norm
from support.small_job import losses, metrics
from torch import nn

Run = Callable[..., TrainResult]
WHOLE: dict[str, Any] = {"freeze_encoder": False, "steps_freq": 1, "max_steps": 6, "threads": 1, "weight_decay": 0.0}
NATIVE, MODULE = {"dtype": "bfloat16"}, {"dtype": "float32", "kernel": "transformers"}
# What takes the gradient of one step from several batches, and scales it.
BATCHES = {"batch_size": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> set[torch.layout]:
    """The layouts of all gradients that an optimizer is given."""
    found: set[torch.layout] = set()

    def seen(parameters: Any, most: float | None = None) -> torch.Tensor:
        kept = list(parameters)
        norm = total_norm(kept, most)
        found.update(one.grad.layout for one in kept if one.grad is not None)
        return norm

    monkeypatch.setattr("isotrain.albert_core.workload.step.total_norm", seen)
    return found


@pytest.mark.parametrize("path", [NATIVE, MODULE], ids=["native", "module"])
@pytest.mark.parametrize(
    "options", [{"optim": "sgd", "learning_rate": 0.05}, {"optim": "adagrad", "learning_rate": 1e-3, **BATCHES}]
)
def test_a_run_with_sparse_rows_is_that_with_dense_ones(
    run: Run, path: dict[str, Any], options: dict[str, Any], layouts: set[torch.layout], monkeypatch: Any
) -> None:
    given = {**WHOLE, **path, **options}
    sparse = run(run_name="sparse", **given)
    assert torch.sparse_coo in layouts
    layouts.clear()
    monkeypatch.setattr("isotrain.albert_core.loop.build.takes_rows", lambda _: False)
    dense = run(run_name="dense", **given)
    assert layouts == {torch.strided}
    # The sum of a row and the scale of clipping may round otherwise, and then one weight another way to bfloat16.
    limit = 1e-4 if path == NATIVE else 1e-5
    for key in ("train/loss", "train/gradient_norm"):
        found, wanted = ([row[key] for row in metrics(one) if key in row] for one in (sparse, dense))
        assert found == pytest.approx(wanted, rel=limit)
    assert sparse.metrics == pytest.approx(dense.metrics, rel=1e-4)


@pytest.mark.parametrize(
    "options", [{"optim": "adamw"}, {"optim": "sgd", "momentum": 0.9}, {"optim": "adagrad", "weight_decay": 0.1}]
)
def test_an_optimizer_that_changes_every_row_gets_a_dense_gradient(
    run: Run, options: dict[str, Any], layouts: set[torch.layout]
) -> None:
    run(**{**WHOLE, **NATIVE, **options, "max_steps": 2})
    assert layouts == {torch.strided}


@pytest.mark.filterwarnings("error")
def test_a_resume_with_sparse_rows_is_bit_exact(run: Run) -> None:
    options = {**WHOLE, **NATIVE, **BATCHES, "optim": "adagrad", "save_strategy": "step", "learning_rate": 0.05}
    straight = run(run_name="straight", **options)
    stopped = run(run_name="halves", stop_at_step=3, **options)
    resumed = run(resume=stopped.run, resume_from_checkpoint=True, **options)
    assert losses(resumed) == losses(straight)
    assert resumed.metrics == straight.metrics


def test_the_norm_adds_up_what_two_batches_gave_to_a_row() -> None:
    table, other = nn.Embedding(6, 2, sparse=True), nn.Linear(2, 1)
    for ids in ([1, 1, 2], [2, 5]):
        other(table(torch.tensor(ids))).sum().backward()
    parameters = [*table.parameters(), *other.parameters(), nn.Parameter(torch.zeros(3))]
    dense = [one.grad.to_dense().flatten() for one in parameters if one.grad is not None]
    wanted = torch.cat(dense).norm()
    torch.testing.assert_close(total_norm(parameters), wanted)
    torch.testing.assert_close(total_norm(parameters, 0.5), wanted)
    torch.testing.assert_close(total_norm(parameters), torch.tensor(0.5), rtol=1e-4, atol=0)
