"""One checkpoint: what is written comes back exactly, and what came back damaged is refused by name."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import RunError, UserError
from isotrain.albert_core.runs.checkpoint import (
    CheckpointError,
    Snapshot,
    check_identity,
    read_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from torch import nn

pytestmark = pytest.mark.core

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw_fused": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
    "adamw_amsgrad": lambda p: torch.optim.AdamW(p, 1e-2, amsgrad=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-2),
    "adam_tensor_lr": lambda p: torch.optim.Adam(p, torch.tensor(1e-2)),
    "sgd": lambda p: torch.optim.SGD(p, 1e-2),
    "sgd_momentum": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, nesterov=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, 1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
}


def small_model() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_training_equals_uninterrupted_training_bit_for_bit(
    name: str, tmp_path: Path, identical: Callable[[Any, Any], bool]
) -> None:
    whole = small_model()
    train(whole, OPTIMIZERS[name](whole.parameters()), range(6))

    first = small_model()
    optimizer = OPTIMIZERS[name](first.parameters())
    train(first, optimizer, range(3))
    path = write_checkpoint(
        Snapshot(first.state_dict(), optimizer.state_dict(), {}, {}, {}, {}, step=3, epoch=0), tmp_path
    )
    loaded = read_checkpoint(path)
    assert identical(loaded.optimizer, optimizer.state_dict())

    second = small_model()
    second.load_state_dict(loaded.model)
    resumed = OPTIMIZERS[name](second.parameters())
    resumed.load_state_dict(loaded.optimizer or {})
    train(second, resumed, range(3, 6))
    assert identical(dict(second.state_dict()), dict(whole.state_dict()))


def test_every_kind_of_value_comes_back_exactly(tmp_path: Path, identical: Callable[[Any, Any], bool]) -> None:
    state = {
        "floats": [0.1, -0.0, 1e-320, float("inf"), float("-inf"), float("nan")],
        "tuples": (1, ("a", None), [True, 2**70]),
        "int keys": {0: {"x": 1}, 7: (), (1, "b"): "tuple key"},
        "names like ours": {"$float": "inf", "$tensor": "optimizer/0"},
        "text": 'quote " newline \n snowman \u2603',
        "empty": [{}, [], ""],
    }
    snapshot = Snapshot({}, None, {}, state, {"a": (1, 2)}, {"eval/loss": float("nan")}, step=7, epoch=2)
    loaded = read_checkpoint(write_checkpoint(snapshot, tmp_path))
    assert identical(loaded.state, state)
    assert identical(loaded.identity, snapshot.identity)
    assert identical(loaded.metrics, snapshot.metrics)
    assert (loaded.step, loaded.epoch, loaded.optimizer) == (7, 2, None)


def test_awkward_tensors_come_back_exactly(tmp_path: Path, identical: Callable[[Any, Any], bool]) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "base": base,
        "tied": base,
        "transposed": base.t(),
        "row": base[1],
        "strided": base[:, ::2],
        "expanded": base[:1].expand(3, 6),
        "bf16": base.to(torch.bfloat16),
        "half": base.half(),
        "scalar": torch.tensor(3.0, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "empty too": torch.empty(2, 0),
        "flags": base > 5,
        "rng": torch.get_rng_state(),
        "parameter": nn.Parameter(base + 1),
    }
    loaded = read_checkpoint(write_checkpoint(Snapshot(tensors, {}, tensors, {}, {}, {}, 1, 0), tmp_path))
    expected = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for back in (loaded.model, loaded.state_tensors):
        assert identical({name: back[name] for name in expected}, expected)


def test_a_tensor_among_plain_values_is_refused_at_save_time(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="state/loss"):
        write_checkpoint(Snapshot({}, None, {}, {"loss": torch.ones(1)}, {}, {}, 1, 0), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_manifest_names_versions_time_and_files(tmp_path: Path, make_snapshot: Callable[..., Snapshot]) -> None:
    path = write_checkpoint(make_snapshot(123), tmp_path)
    assert path == tmp_path / "step-00000123"
    manifest = json.loads((path / "manifest.json").read_text())
    assert {"format", "version", "isotrain", "torch", "python", "created", "step", "epoch"} <= manifest.keys()
    assert manifest["torch"] == torch.__version__
    assert manifest["created"].endswith("+00:00")
    for entry in manifest["files"].values():
        assert (path / entry["name"]).stat().st_size == entry["size"]
    assert sorted(file.name for file in path.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.safetensors",
    ]


def flip_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    file.write_bytes(data)


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "emptied": lambda file: file.write_bytes(b""),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "bit flipped": flip_bit,
    "a folder": become_a_folder,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.safetensors", "manifest.json"])
def test_damage_is_refused_naming_the_file_and_nothing_is_deleted(
    name: str,
    damage: str,
    tmp_path: Path,
    make_snapshot: Callable[..., Snapshot],
    tree: Callable[[Path], dict[str, bytes]],
) -> None:
    path = write_checkpoint(make_snapshot(5), tmp_path)
    DAMAGE[damage](path / name)
    before = tree(tmp_path)
    for check in (read_checkpoint, verify_checkpoint):
        with pytest.raises(CheckpointError, match=name) as caught:
            check(path)
        assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


def edit_manifest(path: Path, **changes: Any) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": 6}, "SHA-256"),
        ({"metrics": {"eval/loss": 0.0}}, "SHA-256"),
        ({"format": "pytorch"}, "not of an isotrain checkpoint"),
        ({"version": 2}, "version 2"),
    ],
)
def test_an_edited_or_foreign_manifest_is_refused(
    changes: dict[str, Any], reason: str, tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    path = write_checkpoint(make_snapshot(5), tmp_path)
    edit_manifest(path, **changes)
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no-such"):
        read_checkpoint(tmp_path / "no-such")


def test_a_missing_optimizer_file_is_none_only_where_it_may_be_pruned(
    tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    path = write_checkpoint(make_snapshot(5), tmp_path, optimizer_prunable=True)
    assert read_checkpoint(path).optimizer is not None
    (path / "optimizer.safetensors").unlink()
    loaded = read_checkpoint(path)
    assert loaded.optimizer is None
    assert torch.equal(loaded.model["head.weight"], make_snapshot(5).model["head.weight"])


def test_the_same_step_again_is_written_beside_the_first(
    tmp_path: Path, make_snapshot: Callable[..., Snapshot], tree: Callable[[Path], dict[str, bytes]]
) -> None:
    first = write_checkpoint(make_snapshot(5), tmp_path)
    before = tree(first)
    second = write_checkpoint(make_snapshot(5, {"eval/loss": 1.0}), tmp_path)
    assert second == tmp_path / "step-00000005.2"
    assert read_checkpoint(second).metrics == {"eval/loss": 1.0}
    assert tree(first) == before


@pytest.mark.parametrize("function", ["fsync", "rename", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_refuses_at_any_point_leaves_the_older_checkpoints_and_no_rest(
    function: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_snapshot: Callable[..., Snapshot],
    tree: Callable[[Path], dict[str, bytes]],
) -> None:
    old = write_checkpoint(make_snapshot(1), tmp_path)
    before = tree(old)
    for failing_call in range(100):
        calls = 0
        genuine = getattr(os, function)

        def refuse(*args: Any, _fails: int = failing_call, _genuine: Any = genuine, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == _fails + 1:
                raise OSError(code, os.strerror(code))
            return _genuine(*args, **kwargs)

        new = tmp_path / f"step-{failing_call + 2:08d}"
        # Of the weight, its two moments and the step count, and the generator's state.
        needed = 3 * 64 + 4 + torch.get_rng_state().nbytes
        wanted = f"checkpoint {new} can't be written ({os.strerror(code)}) and it needs {needed:,} bytes"
        with monkeypatch.context() as patch:
            patch.setattr(os, function, refuse)
            try:
                write_checkpoint(make_snapshot(failing_call + 2), tmp_path)
                message = wanted
            except RunError as error:
                message = str(error)
        assert wanted in message
        assert tree(old) == before
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        if new.exists():
            verify_checkpoint(new)
        if calls <= failing_call:
            break
    assert failing_call >= {"fsync": 6, "rename": 1, "open": 2}[function]


def test_a_write_cut_short_by_the_system_leaves_no_rest(tmp_path: Path, make_snapshot: Callable[..., Snapshot]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(RunError, match="step-00000002"):
            write_checkpoint(make_snapshot(2, width=64), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_run_is_refused_naming_the_keys(
    tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    snapshot = read_checkpoint(write_checkpoint(make_snapshot(1), tmp_path))
    check_identity(snapshot, {"encoder": "abc", "seed": 23})
    with pytest.raises(UserError, match=r"step-00000001: encoder is 'abc' there and 'xyz' here; seed is 23 there and"):
        check_identity(snapshot, {"encoder": "xyz", "seed": 24})
    with pytest.raises(UserError, match="extra is absent there and 1 here"):
        check_identity(snapshot, {"encoder": "abc", "seed": 23, "extra": 1})
    with pytest.raises(UserError, match="seed is 23 there and absent here"):
        check_identity(snapshot, {"encoder": "abc"})
