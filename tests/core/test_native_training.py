"""Training on the native kernels: the same losses cached and streamed, and near those of autograd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.job import open_job
from isotrain.albert_core.loop.train import TrainResult
from isotrain.backends.host import processor
from isotrain.kernels.cpu import encoder, library
from isotrain.kernels.cpu.library import EMULATED_INT8_ISA, EMULATED_ISA, ISAS, best_isa, native, why_not
from support.command import Invoke
from support.small_job import losses, settings

Run = Callable[..., TrainResult]


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
@pytest.mark.parametrize(("dtype", "accumulation"), [("bfloat16", 1), ("bfloat16", 3), ("int8", 1)])
def test_cached_and_streamed_losses_have_the_same_bits(run: Run, dtype: str, accumulation: int) -> None:
    common = {"dtype": dtype, "kernel": "native", "gradient_accumulation_steps": accumulation, "steps_freq": 1}
    cached = run(**common)
    streamed = run(**common, feature_cache=False)
    assert len(losses(cached)) > 5
    assert losses(cached) == losses(streamed)
    assert cached.metrics == streamed.metrics


@pytest.mark.skipif(native().library is None, reason=native().reason)
def test_fused_head(run: Run) -> None:
    fused, plain = (losses(run(steps_freq=1, fused_head=value)) for value in (True, False))
    assert [step for step, _ in fused] == [step for step, _ in plain]
    differences = [abs(a - b) for (_, a), (_, b) in zip(fused, plain, strict=True)]
    assert 0 < max(differences) < 1e-4


def test_what_needs_gradients_is_left_to_autograd(run: Run) -> None:
    clipped = losses(run(steps_freq=1, max_grad_norm=1e-3))
    free = losses(run(steps_freq=1))
    assert clipped[0][1] == pytest.approx(free[0][1], rel=1e-5)
    assert clipped != free


def test_the_kernel_is_named_where_it_was_chosen(run: Run) -> None:
    chosen = "portable" if why_not() else "native"
    assert f"kernel {chosen}" in (run(dtype="bfloat16").run.path / "train.log").read_text()
    assert "kernel portable" in (run(dtype="float32").run.path / "train.log").read_text()


def test_an_int8_run_says_what_it_is_and_predicts_as_it_was_trained(run: Run) -> None:
    result = run(dtype="int8")
    assert "int8 weights and activations, int32 sums" in (result.run.path / "train.log").read_text()
    predictor = load_predictor(result.run)
    assert predictor.encoder is not None
    assert predictor.encoder.name == ("portable" if why_not() else "native")
    assert len(predictor.predict(["one text", "and another"])) == 2


@pytest.fixture
def _no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with neither AMX nor AVX-512, on which the library was built."""
    monkeypatch.setattr(processor, "matrix_features", lambda: ("avx2", "fma"))
    monkeypatch.setattr(library, "best_isa", lambda *_: None)
    monkeypatch.setattr(encoder, "best_isa", lambda *_: None)


@pytest.mark.skipif(native().library is None, reason=native().reason)
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"dtype": "int8"}, "int32 sums (emulated: this CPU has no int8 units)"),
        ({"dtype": "bfloat16"}, "products in float32: this CPU has no bfloat16 units"),
        ({"dtype": "bfloat16", "freeze_encoder": False}, "products in float32: this CPU has no bfloat16 units"),
    ],
    ids=["int8", "bfloat16", "whole"],
)
@pytest.mark.usefixtures("_no_units")
def test_without_the_units_a_run_says_what_is_emulated_and_which_kernel_serves(
    invoke: Invoke, small_data: Path, tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    def train(**more: Any) -> tuple[int, str, str]:
        given = settings(small_data, tmp_path, **{"max_steps": 2, "run_name": "r"} | keys | more)
        return invoke("train", "quickstart", *(f"--set={one}" for one in given))

    code, _, err = train()
    assert code == 0, err
    assert said in err
    assert "can't run (the native kernel needs AMX or AVX512-BF16, and this processor has neither" in err
    log = (tmp_path / "runs/r/train.log").read_text()
    assert f"kernel {'portable' if keys.get('freeze_encoder', True) else 'transformers'}" in log
    code, _, err = train(kernel="native", run_name="native")
    assert code == 2, err
    assert "isotrain: error: kernel native can't run: the native kernel needs AMX" in err.splitlines()[-1]


def test_emulated_units_are_never_chosen() -> None:
    chosen = {best_isa(dtype) for dtype in ISAS}
    assert not chosen & {EMULATED_ISA, EMULATED_INT8_ISA}


def test_nothing_is_trained_whole_in_int8(run: Run) -> None:
    with pytest.raises(UserError, match="for a frozen encoder's features, and this model is trained whole"):
        run(dtype="int8", freeze_encoder=False)


def test_a_kernel_that_cannot_run(configure: Callable[..., Any]) -> None:
    job = open_job(configure(kernel="native").config)
    with pytest.raises(UserError, match="kernel native can't run"):
        job.frozen_encoder()
