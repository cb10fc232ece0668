"""A store of checkpoints names nothing that is written here, and sends no more than its manifest says."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from isotrain import UserError
from isotrain.albert_core.runs import checkpoint
from isotrain.albert_core.runs.checkpoint import Snapshot, write_checkpoint
from isotrain.albert_core.runs.remote import fetch_latest, remote_checkpoints, sync_checkpoint


def snapshot() -> Snapshot:
    return Snapshot(
        model={"weight": torch.ones(3)},
        optimizer=None,
        state_tensors={"sums": torch.zeros(2)},
        state={"samples": 1},
        identity={"seed": 1},
        metrics={"eval/loss": 0.5},
        step=7,
        epoch=1,
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[MemoryFileSystem, str, Path]]:
    """A filesystem, the URL of a store in it with one checkpoint, and a run's folder to fetch that into."""
    url = f"memory://{uuid.uuid4().hex}/a/b"
    sync_checkpoint(write_checkpoint(snapshot(), tmp_path / "source"), url)
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "run").mkdir()
    yield fsspec.core.url_to_fs(url)[0], url, tmp_path / "run"
    MemoryFileSystem.store.clear()


def put(filesystem: MemoryFileSystem, url: str, data: bytes) -> None:
    filesystem.store[filesystem._strip_protocol(url)] = fsspec.implementations.memory.MemoryFile(filesystem, url, data)


def edit_manifest(filesystem: MemoryFileSystem, url: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the store's manifest, and makes its own checksum fit."""
    path = f"{url}/step-00000007/manifest.json"
    manifest = json.loads(filesystem.cat_file(path))
    change(manifest)
    manifest["manifest_sha256"] = checkpoint._manifest_digest(manifest)
    filesystem.pipe_file(path, json.dumps(manifest).encode())


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_whatever_else_a_store_lists_is_not_fetched(
    store: tuple[MemoryFileSystem, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem, url, run = store
    evil = [f"{url}/step-00000007/{name}" for name in ("../../../evil", "/etc/evil", "extra.bin", "sub/evil")]
    for path in evil:
        put(filesystem, path, b"evil")
    genuine = MemoryFileSystem.find
    monkeypatch.setattr(MemoryFileSystem, "find", lambda self, *a, **k: [*genuine(self, *a, **k), *evil])
    fetch_latest(url, run / "checkpoints")
    names = ("manifest.json", "model.safetensors", "state.safetensors")
    assert files_of(tmp_path) == [f"run/checkpoints/step-00000007/{name}" for name in names]


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["files"]["model"].update(name="../../evil"),
        lambda manifest: manifest["files"].update({"../../evil": manifest["files"]["model"]}),
        lambda manifest: manifest["files"].pop("model"),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest["files"]["model"].update(size="9" * 9),
        lambda manifest: manifest.update(step="../../evil"),
        lambda manifest: manifest.update(metrics=["x"]),
        lambda manifest: manifest.update(state={"$tensor": "absent"}),
        lambda manifest: manifest.update(metrics={"eval/loss": {"$float": "x"}}),
    ],
)
def test_a_manifest_of_another_making_writes_nothing_elsewhere(
    store: tuple[MemoryFileSystem, str, Path], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    filesystem, url, run = store
    edit_manifest(filesystem, url, change)
    with suppress(UserError):
        checkpoint.read_checkpoint(fetch_latest(url, run / "checkpoints"))
    assert not list(tmp_path.rglob("*evil*"))
    assert {path.split("/")[0] for path in files_of(tmp_path)} <= {"run"}


def test_no_more_is_read_than_the_manifest_says(store: tuple[MemoryFileSystem, str, Path]) -> None:
    filesystem, url, run = store
    path = f"{url}/step-00000007/model.safetensors"
    filesystem.pipe_file(path, filesystem.cat_file(path) + bytes(10_000_000))
    with pytest.raises(UserError, match=r"model\.safetensors is damaged: it has more than"):
        fetch_latest(url, run / "checkpoints")
    assert files_of(run) == []


def test_names_that_are_no_checkpoints_are_passed_over(store: tuple[MemoryFileSystem, str, Path]) -> None:
    filesystem, url, _ = store
    for name in ("step-" + "9" * 5000, "step-0000000x", "../step-00000009", "step-00000009.2/..", "step-٠٠٠٠٠٠٠٩"):
        put(filesystem, f"{url}/{name}/manifest.json", b"{}")
    assert remote_checkpoints(url) == ["step-00000007"]


def test_a_huge_or_deep_manifest_is_no_manifest(store: tuple[MemoryFileSystem, str, Path]) -> None:
    filesystem, url, run = store
    filesystem.pipe_file(f"{url}/step-00000007/manifest.json", b"[" * 1_000_000)
    with pytest.raises(UserError, match="nested more than 100 levels deep"):
        fetch_latest(url, run / "checkpoints")
    assert files_of(run) == []
