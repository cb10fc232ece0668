"""`torch_compile`: a compiled training step trains as the plain one, is resumed bit for bit, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import RunError, UserError
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.train import TrainResult
from isotrain.backends import COMPILE_MODES, get_backend
from isotrain.kernels import inductor
from safetensors.torch import load_file
from support.small_job import losses

Run = Callable[..., TrainResult]

WHOLE: dict[str, Any] = {
    "freeze_encoder": False,
    "learning_rate": 1e-3,
    "steps_freq": 1,
    "num_epochs": 1,
    "save_strategy": "no",
    "copy_encoder": False,
}


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile traces, but compiles nothing, which would take seconds."""
    monkeypatch.setattr(inductor, "COMPILER", "aot_eager")


def values(result: TrainResult) -> list[float]:
    return [loss for _, loss in losses(result)]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    "change",
    [
        {
            "gradient_accumulation_steps": 3,
            "label_smoothing_factor": 0.1,
            "class_weights": "balanced",
            "head": "pooler_linear",
        },
        {"dtype": "bfloat16", "strict_dtype": True, "max_grad_norm": 1.0, "gradient_checkpointing": True},
        {"lora": {"rank": 4, "targets": ["query", "value", "ffn"]}},
    ],
    ids=["accumulation, another loss and head", "autocast and checkpointing", "adapters"],
)
def test_losses_are_those_of_the_plain_step(run: Run, change: dict[str, Any]) -> None:
    common = WHOLE | {"layout": "padded", "max_steps": 2} | change
    before = get_backend("cpu").compile_count()
    plain = run(**common)
    assert get_backend("cpu").compile_count() == before
    compiled = run(torch_compile="default", **common)
    assert get_backend("cpu").compile_count() > before
    # bfloat16: torch may keep more digits within a program.
    tolerance = 2e-2 if "dtype" in change else 1e-5
    assert values(compiled) == pytest.approx(values(plain), rel=tolerance)


@pytest.mark.usefixtures("traced")
def test_a_resume_by_another_step_is_refused(run: Run) -> None:
    common = WHOLE | {"layout": "padded", "save_strategy": "step"}
    first = run(stop_at_step=1, torch_compile="default", **common)
    with pytest.raises(UserError, match="torch_compile is"):
        run(resume=first.run, **common)


@pytest.mark.slow
def test_a_compiled_run_is_resumed_bit_for_bit_with_dropout(run: Run, dropping_model: Path) -> None:
    if reason := inductor.why_no_compiler("cpu"):
        pytest.skip(reason)
    common = WHOLE | {
        "model_name": str(dropping_model),
        "torch_compile": "default",
        "layout": "padded",
        "batch_size": 9,
        "max_steps": 4,
        "save_strategy": "step",
    }
    before = get_backend("cpu").compile_count()
    straight = run(run_name="straight", **common)
    programs = get_backend("cpu").compile_count() - before
    first = run(run_name="cut", stop_at_step=2, **common)
    second = run(run_name="cut", resume=first.run, **common)
    assert values(second) == values(straight)
    one, two = (load_file(result.run.model / "model.safetensors") for result in (straight, second))
    assert all(torch.equal(one[name], two[name]) for name in one)
    # A frame, and a graph each for forward and backward.
    assert 0 < programs <= 3, "one batch shape, one program"


@pytest.mark.slow
@pytest.mark.parametrize("mode", [mode for mode in COMPILE_MODES if mode != "default"])
def test_programs_of_every_other_mode_train_alike(run: Run, mode: str) -> None:
    if reason := inductor.why_no_compiler("cpu"):
        pytest.skip(reason)
    common = WHOLE | {"layout": "padded", "max_steps": 2}
    plain, before = run(**common), get_backend("cpu").compile_count()
    compiled = run(torch_compile=mode, **common)
    assert get_backend("cpu").compile_count() > before
    assert values(compiled) == pytest.approx(values(plain), rel=1e-5)


@pytest.mark.usefixtures("traced")
def test_what_cannot_be_compiled_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from isotrain.albert_core.model import whole

    def untraceable(module: Any, batch: Any, *, static: bool) -> torch.Tensor:
        del static
        return module(batch.input_ids * int(batch.input_ids.sum().item() > 0)).last_hidden_state

    monkeypatch.setattr(whole, "padded_states", untraceable)
    with pytest.raises(RunError) as caught:
        run(torch_compile="default", **WHOLE)
    assert "torch.compile can't compile this model (" in str(caught.value)
    assert str(caught.value).endswith("; drop torch_compile")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["torch_compile=fast", "freeze_encoder=false"], "should be 'default', 'reduce-overhead' or 'max-autotune'"),
        (["torch_compile=default"], "set freeze_encoder: false, or kernel: compile instead"),
        (["torch_compile=default", "freeze_encoder=false", "layout=packed"], "set layout: bucketed or padded"),
        (["torch_compile=default", "freeze_encoder=false", "layout=dynamic"], "set layout: bucketed or padded"),
        (["kernel=compile", "layout=packed"], "kernel: compile takes no packed batches; set kernel: auto, or layout"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, settings)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_off_is_the_word_for_none() -> None:
    assert load_config(None, ["torch_compile=off"]).config.torch_compile is None
    assert load_config(None, ["torch_compile=default", "freeze_encoder=false"]).config.torch_compile == "default"


@pytest.mark.parametrize("backend", ["tt-emulated", "ideal"])
def test_a_device_without_modes_refuses_them(run: Run, backend: str) -> None:
    with pytest.raises(UserError, match=f"torch_compile 'default' means nothing on backend {backend}.*; drop it"):
        run(backend=backend, torch_compile="default", **WHOLE)


def test_compile_is_torch_compile_in_a_mode_and_nothing_without(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def fake(function: Any, **options: Any) -> Any:
        asked.append(options)
        return function

    monkeypatch.setattr(torch, "compile", fake)
    backend = get_backend("cpu")
    assert backend.compile(torch.relu) is torch.relu
    assert asked == []
    for mode in COMPILE_MODES:
        assert backend.compile(torch.relu, mode)(torch.tensor(-1.0)) == 0.0
    assert [options["mode"] for options in asked] == list(COMPILE_MODES)
    assert {options["backend"] for options in asked} == {"inductor"}
    with pytest.raises(UserError, match="torch_compile 'fast' does not exist; allowed are default"):
        backend.compile(torch.relu, "fast")
