"""float16 with a gradient scaler, on the host made to have one: it loses no gradient, skips what overflows, resumes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.loop.train import TrainResult
from isotrain.backends import CastPolicy
from isotrain.backends.cpu import CpuBackend
from isotrain.backends.training.loss_scale import LossScale
from isotrain.kernels import plugins
from safetensors.torch import load_file
from support.small_job import losses, metrics

Run = Callable[..., TrainResult]

HALF = {
    "backend": "half",
    "freeze_encoder": False,
    "dtype": "float16",
    "learning_rate": 1e-3,
    "steps_freq": 1,
    "max_steps": 8,
    "threads": 1,
}


class HalfBackend(CpuBackend):
    """A host that computes in float16 under autocast, as a GPU does."""

    name = "half"
    scale = 2.0**16

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        if dtype != "float16":
            return super().cast_policy(dtype, strict=strict)
        return CastPolicy(dtype, dtype, dtype, "float32", "float16 products, float32 sums")

    def grad_scaler(self, policy: CastPolicy) -> torch.amp.GradScaler | None:
        return torch.amp.GradScaler("cpu", init_scale=self.scale) if policy.compute == "float16" else None


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> type[HalfBackend]:
    """The backend `half`, installed."""
    entry = EntryPoint("half", "somewhere:HalfBackend", "isotrain.backends")
    monkeypatch.setattr(plugins, "entry_points", lambda **_: [entry])
    monkeypatch.setattr(EntryPoint, "load", lambda _: HalfBackend)
    return HalfBackend


def test_float16_losses_are_float32s_to_its_rounding(run: Run, half: type[HalfBackend]) -> None:
    exact = losses(run(**HALF | {"dtype": "float32"}))
    got = losses(run(run_name="half", **HALF))
    assert got != exact, "products in float32 would prove nothing"
    for (_, loss), (_, expected) in zip(got, exact, strict=True):
        assert loss == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("clipped", [{}, {"max_grad_norm": 0.1}])
def test_a_step_that_overflows_is_left_out_and_counted(
    run: Run, half: type[HalfBackend], monkeypatch: pytest.MonkeyPatch, clipped: dict[str, Any]
) -> None:
    straight = run(run_name="straight", **HALF, **clipped)
    assert {item["skipped_steps"] for item in metrics(straight) if "train/loss" in item} == {0.0}
    monkeypatch.setattr(HalfBackend, "scale", 2.0**40)
    result = run(run_name="overflowing", **HALF, **clipped)
    lines = [item for item in metrics(result) if "train/loss" in item]
    assert lines[0]["skipped_steps"] == 1
    assert lines[0]["loss_scale"] == 2.0**39
    assert 1 < lines[-1]["skipped_steps"] <= 8
    assert "overflowed float16, left out (" in (result.run.path / "train.log").read_text()
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(result.run.model / "model.safetensors").values())


def test_a_skipped_step_changes_no_weight(half: type[HalfBackend]) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    scale = LossScale(torch.amp.GradScaler("cpu", init_scale=4.0), torch.ones(()))
    for loss, moved in (((weight * torch.inf).sum(), False), (weight.sum(), True)):
        scale.scaled(loss).backward()
        scale.step(optimizer)
        optimizer.zero_grad()
        assert bool((weight != 1).all()) == moved
    assert scale.figures() == {"loss_scale": 2.0, "skipped_steps": 1.0}


def test_resume_is_bit_exact_with_the_scale_where_it_was(
    run: Run, half: type[HalfBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HalfBackend, "scale", 2.0**40)
    straight = run(run_name="straight", **HALF)
    first = run(run_name="cut", stop_at_step=3, **HALF)
    second = run(run_name="cut", resume=first.run, **HALF)
    kept = ("step", "train/loss", "loss_scale", "skipped_steps")
    one, two = ([[item.get(key) for key in kept] for item in metrics(result)] for result in (straight, second))
    assert one == two
    ours, theirs = (load_file(result.run.model / "model.safetensors") for result in (straight, second))
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


def test_float16_without_a_scaler_is_refused(
    run: Run, half: type[HalfBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HalfBackend, "grad_scaler", lambda *_: None)
    with pytest.raises(UserError, match="no gradient scaler; set dtype: bfloat16"):
        run(**HALF)
    with pytest.raises(UserError, match="can't train on the cpu backend; allowed are float32, bfloat16, float64"):
        run(**HALF | {"backend": "cpu"})
