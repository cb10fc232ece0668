"""Checkpoints on other storage, through fsspec's ``file://`` and ``memory://``."""

from __future__ import annotations

import errno
import json
import logging
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.best import Best
from isotrain.albert_core.runs.checkpoint import CheckpointError, Snapshot, read_checkpoint, write_checkpoint
from isotrain.albert_core.runs.checkpoint_store import CheckpointStore
from isotrain.albert_core.runs.remote import (
    check_remote,
    download_checkpoint,
    fetch_latest,
    latest_remote,
    remote_checkpoints,
    remote_url,
    sync_checkpoint,
    upload_checkpoint,
)


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/remote [1]/run" if request.param == "file" else f"memory://{uuid.uuid4().hex}/run"


def remote_names(url: str) -> list[str]:
    filesystem, root = fsspec.core.url_to_fs(url)
    return sorted(path.rpartition("/")[2] for path in filesystem.ls(root, detail=False))


def break_upload(monkeypatch: pytest.MonkeyPatch, url: str, after_files: int) -> None:
    """The connection goes down once `after_files` files were put."""
    kind = type(fsspec.core.url_to_fs(url)[0])
    genuine, done = kind.put_file, 0

    def put_file(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal done
        done += 1
        if done > after_files:
            raise OSError(errno.ECONNRESET, "connection reset")
        genuine(self, *args, **kwargs)

    monkeypatch.setattr(kind, "put_file", put_file)


def test_a_store_syncs_each_checkpoint_and_a_fresh_machine_fetches_the_newest(
    url: str, tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    assert latest_remote(url) is None
    with pytest.raises(UserError, match="no checkpoint at"):
        fetch_latest(url, tmp_path / "there")
    store = CheckpointStore(
        tmp_path / "here", 1, 0, Best("eval/loss", "min"), after_save=lambda path: sync_checkpoint(path, url)
    )
    for step in (9, 10, 11, 11):
        store.save(make_snapshot(step))
    assert remote_checkpoints(url) == ["step-00000009", "step-00000010", "step-00000011", "step-00000011.2"]
    assert remote_names(url) == remote_checkpoints(url)

    fetched = fetch_latest(url, tmp_path / "there")
    assert fetched == tmp_path / "there" / "step-00000011.2"
    assert torch.equal(read_checkpoint(fetched).model["head.weight"], make_snapshot(11).model["head.weight"])
    assert [path.name for path in fetched.parent.iterdir()] == [fetched.name]
    assert fetch_latest(url, tmp_path / "there") == fetched


@pytest.mark.parametrize("after_files", [0, 1, 3])
def test_a_cut_off_upload_is_warned_about_never_taken_as_whole_and_made_good_by_the_next(
    after_files: int,
    url: str,
    tmp_path: Path,
    make_snapshot: Callable[..., Snapshot],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    old, new = (write_checkpoint(make_snapshot(step), tmp_path / "here") for step in (1, 2))
    assert sync_checkpoint(old, url)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        break_upload(patch, url, after_files)
        assert not sync_checkpoint(new, url)
    assert "connection reset" in caplog.text
    assert latest_remote(url) == old.name
    assert sync_checkpoint(new, url)
    assert latest_remote(url) == new.name
    assert remote_names(url) == [old.name, new.name]
    assert read_checkpoint(fetch_latest(url, tmp_path / "there")).step == 2


def test_syncing_again_uploads_nothing(
    url: str, tmp_path: Path, make_snapshot: Callable[..., Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(make_snapshot(1), tmp_path / "here")
    assert sync_checkpoint(path, url)
    break_upload(monkeypatch, url, 0)
    assert sync_checkpoint(path, url)


def test_another_runs_checkpoint_is_not_overwritten_but_an_own_one_is(
    url: str, tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    first, again, foreign = make_snapshot(1), make_snapshot(1, {"eval/loss": 0.5}), make_snapshot(1)
    foreign.identity = {"seed": 24}
    assert sync_checkpoint(write_checkpoint(first, tmp_path / "first"), url)
    assert sync_checkpoint(write_checkpoint(again, tmp_path / "again"), url)
    with pytest.raises(CheckpointError, match="of another run; set remote_path"):
        sync_checkpoint(write_checkpoint(foreign, tmp_path / "foreign"), url)
    assert read_checkpoint(fetch_latest(url, tmp_path / "there")).metrics == {"eval/loss": 0.5}


def test_damage_on_the_way_is_refused_naming_the_url_and_leaves_nothing(
    url: str, tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    path = write_checkpoint(make_snapshot(1), tmp_path / "here")
    sync_checkpoint(path, url)
    filesystem, root = fsspec.core.url_to_fs(f"{url}/{path.name}/model.safetensors")
    content = filesystem.cat_file(root)
    filesystem.pipe_file(root, content[:-1] + b"\xff")
    with pytest.raises(CheckpointError, match=r"step-00000001/model\.safetensors is damaged") as caught:
        fetch_latest(url, tmp_path / "there")
    assert url in str(caught.value)
    assert list((tmp_path / "there").iterdir()) == []


def test_a_local_checkpoint_that_differs_from_the_remote_one_is_kept(
    url: str, tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    sync_checkpoint(write_checkpoint(make_snapshot(1), tmp_path / "here"), url)
    other = write_checkpoint(make_snapshot(1, {"eval/loss": 1.0}), tmp_path / "there")
    with pytest.raises(CheckpointError, match="is another checkpoint than"):
        fetch_latest(url, tmp_path / "there")
    assert read_checkpoint(other).metrics == {"eval/loss": 1.0}
    (other / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: .* move it away to fetch it from"):
        fetch_latest(url, tmp_path / "there")
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*step-00000099"):
        download_checkpoint(f"{url}/step-00000099", tmp_path / "there" / "step-00000099")


def test_nothing_but_a_checkpoints_files_is_uploaded(
    url: str, tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    path = write_checkpoint(make_snapshot(1), tmp_path / "here")
    (tmp_path / "secret").write_text("secret")
    (path / "link").symlink_to(tmp_path / "secret")
    (path / "more").mkdir()
    (path / "more" / "notes.txt").write_text("mine")
    upload_checkpoint(path, f"{url}/{path.name}")
    assert remote_names(f"{url}/{path.name}") == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.safetensors",
    ]
    with pytest.raises(UserError, match="there is no such folder"):
        upload_checkpoint(tmp_path / "absent", url)


def test_a_folder_without_manifest_does_not_count(
    url: str, tmp_path: Path, make_snapshot: Callable[..., Snapshot]
) -> None:
    path = write_checkpoint(make_snapshot(1), tmp_path / "here")
    sync_checkpoint(path, url)
    filesystem, root = fsspec.core.url_to_fs(f"{url}/step-00000002/model.safetensors")
    filesystem.makedirs(root.rpartition("/")[0])
    filesystem.pipe_file(root, b"half")
    assert remote_checkpoints(url) == ["step-00000001"]


def test_remote_path_as_path_and_as_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert remote_url("backup", "local") == f"file://{tmp_path.resolve()}/backup"
    assert remote_url("s3://bucket/run", "fsspec") == "s3://bucket/run"
    check_remote(remote_url("backup/run", "local"))
    assert (tmp_path / "backup" / "run").is_dir()
    with pytest.raises(UserError, match="remote_path is empty"):
        remote_url("", "fsspec")
    with pytest.raises(UserError, match="set storage_backend: fsspec"):
        remote_url("s3://bucket/run", "local")


def test_urls_that_cannot_work_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"'s3://bucket/run' needs .* `pip install s3fs`$"):
        check_remote("s3://bucket/run")
    with pytest.raises(UserError, match="nosuch"):
        check_remote("nosuch://bucket/run")
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(UserError, match="can't use file://"):
        check_remote(f"file://{tmp_path}/file/run")
