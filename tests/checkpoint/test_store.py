"""A run's checkpoints: what is kept, what is found, and what every failure leaves."""

from __future__ import annotations

import errno
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from isotrain import RunError
from isotrain.albert_core.config.best import Best
from isotrain.albert_core.runs.checkpoint import CheckpointError, Snapshot, read_checkpoint, verify_checkpoint
from isotrain.albert_core.runs.checkpoint_store import CheckpointStore


def build_store(folder: Path, last: int = 3, best: int = 0, **options: Any) -> CheckpointStore:
    by = Best(options.pop("metric", "eval/loss"), options.pop("mode", "min"))
    return CheckpointStore(folder, last, best, by, **options)


def steps(store: CheckpointStore) -> list[int]:
    return [info.step for info in store.list()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("last", "best", "mode", "running", "finished"),
    [
        (2, 0, "min", [4, 5], [4, 5]),
        (0, 0, "min", [5], []),
        (0, 1, "min", [2, 5], [2]),
        (0, 1, "max", [1, 5], [1]),
        (1, 2, "min", [2, 4, 5], [2, 4, 5]),
        (9, 9, "min", [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
    ],
)
def test_policy_while_running_and_at_the_end(
    last: int,
    best: int,
    mode: str,
    running: list[int],
    finished: list[int],
    tmp_path: Path,
    make_snapshot: Callable[..., Snapshot],
) -> None:
    store = build_store(tmp_path, last, best, mode=mode)
    for step, loss in enumerate([0.9, 0.2, 0.5, 0.3, 0.4], start=1):
        store.save(make_snapshot(step, {"eval/loss": loss}))
    assert steps(store) == running
    store.finish()
    assert steps(store) == finished
    assert [name for name in names(tmp_path) if not name.startswith("step-")] == []


def test_nan_and_unmeasured_checkpoints_are_never_best_and_the_earlier_of_equals_is(
    tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    store = build_store(tmp_path, last=0, best=2)
    measured: list[dict[str, float]] = [
        {"eval/loss": float("nan")},
        {},
        {"eval/loss": 0.5},
        {"eval/loss": float("inf")},
        {"eval/loss": 0.5},
        {"eval/loss": 0.5, "eval/accuracy": 1.0},
        {"eval/accuracy": 1.0},
    ]
    for step, metrics in enumerate(measured, start=1):
        store.save(make_snapshot(step, metrics))
    assert steps(store) == [3, 5, 7]
    assert store.find("best").name == "step-00000003"
    assert [info.metrics.get("eval/loss") for info in store.list()] == [0.5, 0.5, None]


def test_a_worse_best_is_deleted_once_displaced_and_a_resumed_store_remembers_it(
    tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    for step, accuracy in enumerate([0.5, 0.9, 0.7, 0.95, 0.6, 0.6], start=1):
        store = build_store(tmp_path, last=1, best=1, metric="eval/accuracy", mode="max")
        store.save(make_snapshot(step, {"eval/accuracy": accuracy}))
    assert steps(store) == [4, 6]


def test_a_saved_step_is_superseded_by_the_same_step_saved_again(
    tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    store = build_store(tmp_path, last=2, best=2)
    for step in (1, 2, 2):
        store.save(make_snapshot(step, {"eval/loss": 0.5}))
    assert names(tmp_path) == ["step-00000001", "step-00000002.2"]
    assert store.find("last").name == "step-00000002.2"


def test_without_save_optim_only_the_newest_has_optimizer_state_and_none_at_the_end(
    tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    store = build_store(tmp_path, last=3, save_optim=False)
    for step in (1, 2, 3):
        store.save(make_snapshot(step))
    kept = [read_checkpoint(info.path) for info in store.list()]
    assert [snapshot.optimizer is not None for snapshot in kept] == [False, False, True]
    store.finish()
    kept = [read_checkpoint(info.path) for info in store.list()]
    assert [snapshot.step for snapshot in kept if snapshot.optimizer is None] == [1, 2, 3]
    assert not list(tmp_path.rglob("optimizer.safetensors"))


def test_optimizer_state_of_an_earlier_part_with_save_optim_is_left_alone(
    tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    build_store(tmp_path).save(make_snapshot(1))
    store = build_store(tmp_path, save_optim=False)
    store.save(make_snapshot(2))
    assert read_checkpoint(tmp_path / "step-00000001").optimizer is not None


def test_after_save_gets_each_verified_checkpoint(tmp_path: Path, make_snapshot: Callable[..., Snapshot]) -> None:
    seen: list[str] = []

    def after(path: Path) -> None:
        verify_checkpoint(path)
        seen.append(path.name)

    store = build_store(tmp_path, last=1, after_save=after)
    for step in (1, 2):
        store.save(make_snapshot(step))
    assert seen == ["step-00000001", "step-00000002"]


def test_list_tells_what_the_manifests_say(tmp_path: Path, make_snapshot: Callable[..., Snapshot]) -> None:
    store = build_store(tmp_path / "not there yet")
    assert store.list() == []
    store.finish()
    path = store.save(make_snapshot(25, {"eval/loss": 0.25}))
    (path.parent / "notes.txt").write_text("not a checkpoint")
    (info,) = store.list()
    assert (info.path, info.step, info.epoch, info.metrics, info.problem) == (path, 25, 2, {"eval/loss": 0.25}, None)
    assert info.created.endswith("+00:00")


def test_find_says_what_is_there(tmp_path: Path, make_snapshot: Callable[..., Snapshot]) -> None:
    store = build_store(tmp_path)
    with pytest.raises(CheckpointError, match="none yet: start the run with resume_from_checkpoint: false"):
        store.find("last")
    path = store.save(make_snapshot(4))
    assert store.find("last") == path
    assert CheckpointStore.for_reading(tmp_path, Best("eval/loss", "min")).find("last") == path
    assert store.find("path", path) == path
    assert store.find("path", "step-00000004") == path
    with pytest.raises(CheckpointError, match=r"no checkpoint with eval/loss.* has step-00000004"):
        store.find("best")
    with pytest.raises(CheckpointError, match=r"'elsewhere' does not exist; .* has step-00000004"):
        store.find("path", "elsewhere")
    with pytest.raises(CheckpointError, match="needs checkpoint_path"):
        store.find("path", "")
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        store.find("path", tmp_path)
    with pytest.raises(CheckpointError, match="allowed are last, best and path"):
        store.find(cast(Any, "newest"))


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_damaged_newest_is_named_with_the_intact_one_to_use_instead(
    name: str,
    tmp_path: Path,
    make_snapshot: Callable[..., Snapshot],
    tree: Callable[[Path], dict[str, bytes]],
) -> None:
    store = build_store(tmp_path, best=3)
    for step in (1, 2, 3):
        store.save(make_snapshot(step, {"eval/loss": 0.5 / step}))
    for step in (3, 2):
        (tmp_path / f"step-{step:08d}" / name).write_bytes(b"{}")
    before = tree(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        store.find("last")
    message = str(caught.value)
    assert str(tmp_path / "step-00000003" / name) in message
    assert f"resume_option: path, checkpoint_path: {tmp_path / 'step-00000001'}" in message
    assert store.find("path", tmp_path / "step-00000001").name == "step-00000001"
    assert tree(tmp_path) == before

    (tmp_path / "step-00000001" / name).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="start a new run"):
        store.find("last")


def test_a_damaged_manifest_is_neither_counted_nor_deleted(
    tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    store = build_store(tmp_path, last=1)
    store.save(make_snapshot(9))
    (tmp_path / "step-00000009" / "manifest.json").write_text("damaged")
    for step in (10, 11):
        store.save(make_snapshot(step))
    store.finish()
    assert [(info.step, info.problem is None) for info in store.list()] == [(9, False), (11, True)]


def test_the_best_is_not_guessed_where_a_manifest_is_damaged(
    tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    store = build_store(tmp_path, last=3)
    for step in (9, 10):
        store.save(make_snapshot(step))
    (tmp_path / "step-00000009" / "manifest.json").write_text("null")
    with pytest.raises(CheckpointError, match=r"step-00000009/manifest.json.* may be the best.*step-00000010"):
        store.find("best")
    assert store.find("last").name == "step-00000010"


def test_resuming_an_older_step_sets_the_later_ones_aside(
    tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    store = build_store(tmp_path, last=3)
    for _ in range(2):
        for step in (1, 2, 3):
            store.save(make_snapshot(step))
        moved = store.set_aside_after(1)
        assert len(moved) == 2
        assert all(path.is_dir() for path in moved)
        assert store.find("last").name.startswith("step-00000001")
    store.save(make_snapshot(2))
    store.finish()
    aside = [name for name in names(tmp_path) if name.startswith("set-aside-")]
    assert aside == [f"set-aside-step-0000000{step}{plus}" for step in (2, 3) for plus in ("", "+")]
    assert steps(store) == [1, 2]


def test_leftovers_of_the_dead_are_removed_and_of_the_living_are_not(
    tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = platform.node()
    leftovers = {
        f".tmp-{host}-{dead.pid}-0123abcd-step-00000007": False,
        f".tmp-{host}-{os.getppid()}-0123abcd-step-00000007": True,
        f".tmp-{host}-{os.getpid()}-0123abcd-step-00000007": False,
        ".tmp-another.host-1-0123abcd-step-00000007": True,
        ".tmp-another.host-2-0123abcd-step-00000007": False,
        f".trash-{'0' * 32}-step-00000007": False,
        ".trash-of-somebody-else": True,
    }
    store = build_store(tmp_path)
    store.save(make_snapshot(1))
    for name in leftovers:
        shutil.copytree(tmp_path / "step-00000001", tmp_path / name)
    os.utime(tmp_path / ".tmp-another.host-2-0123abcd-step-00000007", (0, 0))
    assert store.find("last").name == "step-00000001"
    assert steps(store) == [1]
    store.save(make_snapshot(2))
    assert [name for name in names(tmp_path) if name.startswith(".")] == sorted(
        n for n, stays in leftovers.items() if stays
    )


def test_a_disk_that_changes_what_is_written_is_noticed_before_anything_is_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_snapshot: Callable[..., Snapshot]
) -> None:
    store = build_store(tmp_path, last=1)
    store.save(make_snapshot(1))
    genuine = os.fsync

    def corrupt(descriptor: int) -> None:
        genuine(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.endswith("-model.safetensors"):
            os.pwrite(descriptor, b"\xff", os.fstat(descriptor).st_size - 1)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", corrupt)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            store.save(make_snapshot(2))
    with pytest.raises(CheckpointError, match=r"checkpoint_path: .*step-00000001"):
        store.find("last")
    assert store.find("path", "step-00000001")


@pytest.mark.parametrize("function", ["fsync", "rename", "rmdir", "unlink"])
def test_a_failure_at_any_point_of_save_and_prune_leaves_an_intact_last(
    function: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    make_snapshot: Callable[..., Snapshot],
) -> None:
    store = build_store(tmp_path, last=1, save_optim=False)
    store.save(make_snapshot(1))
    for failing_call in range(100):
        step, calls = failing_call + 2, 0
        genuine = getattr(os, function)

        def refuse(*args: Any, _fails: int = failing_call, _genuine: Any = genuine, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == _fails + 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return _genuine(*args, **kwargs)

        saved = True
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(os, function, refuse)
            try:
                store.save(make_snapshot(step))
            except RunError:
                saved = False
        last = read_checkpoint(store.find("last"))
        assert last.optimizer is not None
        assert torch.equal(last.model["head.weight"], make_snapshot(last.step).model["head.weight"])
        assert not saved or last.step == step
        if calls <= failing_call:
            break
    assert failing_call >= {"fsync": 7, "rename": 2, "rmdir": 1, "unlink": 1}[function]
    assert "can't be deleted" in caplog.text
    store.save(make_snapshot(200))
    assert names(tmp_path) == ["step-00000200"]
