"""`no_decay`: which trained weights the decay leaves alone, in every kind of model, through stops, on each backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.schema import TrainConfig
from isotrain.albert_core.loop.optim import build_optimizer, load_optimizer_state, optimizer_state, parameter_groups
from isotrain.albert_core.loop.train import TrainResult
from isotrain.backends import get_backend
from safetensors.torch import load_file
from support.small_job import losses
from torch import nn

Run = Callable[..., TrainResult]
KINDS = ["bias", "layer_norm"]
# A decay that halves a weight within the run, beside which a gradient is nothing.
STRONG: dict[str, Any] = {"weight_decay": 50.0, "learning_rate": 1e-3, "max_steps": 10, "threads": 1}
JOBS: dict[str, dict[str, Any]] = {
    "head": STRONG,
    "whole": STRONG | {"freeze_encoder": False},
    "adapters": STRONG | {"freeze_encoder": False, "lora": {"rank": 2}},
}


class Small(nn.Module):
    """One parameter of each kind, one of them frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.last = nn.Linear(2, 2)
        self.first.bias.requires_grad_(False)


@pytest.mark.parametrize(
    ("entries", "spared"),
    [
        ([], []),
        (["bias"], ["norm.bias", "last.bias"]),
        (["layer_norm"], ["norm.weight", "norm.bias"]),
        (KINDS, ["norm.weight", "norm.bias", "last.bias"]),
        (["last"], ["last.weight", "last.bias"]),
        (["last.weight"], ["last.weight"]),
        (["weight", "bias"], None),
    ],
)
def test_entries_name_parameters(entries: list[str], spared: list[str] | None) -> None:
    model = Small()
    groups = parameter_groups(model, TrainConfig(weight_decay=0.1, no_decay=entries))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(group.get("weight_decay"), [names[id(part)] for part in group["params"]]) for group in groups]
    everything = ["first.weight", "norm.weight", "norm.bias", "last.weight", "last.bias"]
    if spared is None:
        assert found == [(0.0, everything)]
    elif not spared:
        assert found == [(0.1, everything)]
    else:
        assert found == [(None, [name for name in everything if name not in spared]), (0.0, spared)]


def test_without_decay_there_is_one_group() -> None:
    assert len(parameter_groups(Small(), TrainConfig(no_decay=KINDS))) == 1


@pytest.mark.parametrize("entry", ["las", "first.bias", "LayerNorm", ""])
def test_what_names_nothing_is_refused(entry: str) -> None:
    with pytest.raises(UserError, match=r"no_decay names .*; allowed are bias, layer_norm, .*'first.weight'"):
        parameter_groups(Small(), TrainConfig(no_decay=[entry]))


def test_it_is_refused_before_any_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(*_: Any) -> None:
        raise AssertionError("features were computed first")

    monkeypatch.setattr("isotrain.albert_core.loop.build.cached_features", compute)
    with pytest.raises(UserError, match="no_decay names 'absent'"):
        run(no_decay=["absent"])


@pytest.mark.parametrize("backend", ["cpu", "tt"])
@pytest.mark.parametrize("job", JOBS)
def test_only_the_others_decay(run: Run, job: str, backend: str) -> None:
    if job == "adapters":
        pytest.importorskip("peft", reason="needs the extra lora")
    backends = {"backend": backend} | ({"layout": "bucketed", "dtype": "bfloat16"} if backend == "tt" else {})
    norms = {}
    for name, keys in (("all", {}), ("some", {"no_decay": KINDS}), ("none", {"weight_decay": 0.0})):
        result = run(run_name=name, **JOBS[job] | keys | backends)
        weights = load_file(result.run.model / "model.safetensors")
        norms[name] = {key: float(weight.norm()) for key, weight in weights.items() if weight.is_floating_point()}
    # A small weight is what its gradients made of it, and they are others where other weights decay.
    trained = {key for key in norms["all"] if norms["all"][key] < 0.9 * norms["none"][key] and norms["none"][key] > 0.5}
    assert trained
    for key in trained:
        spared = key.endswith("bias") or "layernorm" in key.lower().replace("_", "")
        wanted = norms["none" if spared else "all"][key]
        assert norms["some"][key] == pytest.approx(wanted, rel=0.1), key


@pytest.mark.parametrize("job", JOBS)
def test_a_resume_goes_on_bit_for_bit(run: Run, job: str) -> None:
    if job == "adapters":
        pytest.importorskip("peft", reason="needs the extra lora")
    keys = JOBS[job] | {"no_decay": KINDS, "weight_decay": 0.5, "steps_freq": 1}
    straight = run(run_name="straight", **keys)
    first = run(run_name="cut", stop_at_step=4, **keys)
    second = run(resume=first.run, **keys)
    assert losses(second) == losses(straight)
    one, two = (load_file(result.run.model / "model.safetensors") for result in (straight, second))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor"])
def test_the_saved_state_is_the_same_whatever_the_groups(optim: str) -> None:
    model, backend = Small(), get_backend("cpu", {})
    keys: dict[str, Any] = {"optim": optim, "weight_decay": 0.1, "momentum": 0.9}
    optimizers = [
        build_optimizer(model, TrainConfig(**keys, no_decay=entries), backend) for entries in ([], KINDS, ["first"])
    ]
    model.last(model.norm(model.first(torch.ones(3, 2) + torch.eye(3, 2)))).square().sum().backward()
    optimizers[0].step()
    saved = optimizer_state(optimizers[0], model)
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1, 2, 3, 4]]
    for optimizer in optimizers[1:]:
        load_optimizer_state(optimizer, model, saved)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
        again = optimizer_state(optimizer, model)["state"]
        assert list(again) == list(saved["state"])
        for number, state in saved["state"].items():
            assert all(
                torch.equal(torch.as_tensor(value), torch.as_tensor(again[number][name]))
                for name, value in state.items()
            )
        held = optimizer.state[model.last.weight]
        assert all(torch.equal(torch.as_tensor(saved["state"][3][name]), torch.as_tensor(held[name])) for name in held)


def test_what_decays_may_change_at_a_resume(run: Run) -> None:
    keys = JOBS["whole"] | {"weight_decay": 0.5}
    first = run(stop_at_step=4, **keys)
    assert run(resume=first.run, **keys | {"no_decay": KINDS}).status == "completed"


def test_the_fused_head_step_says_that_it_has_one_decay(run: Run) -> None:
    from isotrain.kernels.cpu.library import native

    if native().library is None:
        pytest.skip("no native library: the head is trained by autograd in any case")
    result = run(no_decay=KINDS, weight_decay=0.1, max_steps=2)
    said = "its native step can't run (the optimizer has several parameter groups)"
    assert said in (result.run.path / "train.log").read_text()
    assert said not in (run(no_decay=KINDS, max_steps=2, run_name="b").run.path / "train.log").read_text()
