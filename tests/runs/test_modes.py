"""Every file and folder has the mode that the umask gives, so that another user of the group can use a run."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from isotrain import UserError
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.inference.export import export_run
from isotrain.albert_core.loop.train import train
from isotrain.albert_core.runs.files import check_file, checksums
from isotrain.benchmarks.parity.trace import write_trace
from support.parity_traces import exact
from support.small_job import settings, write_dataset
from support.tiny_models import write_models


@pytest.fixture
def narrow_umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("narrow_umask")
def test_a_run_its_export_its_caches_and_a_trace_have_the_umasks_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOTRAIN_CACHE", str(tmp_path / "cache"))
    model = str(write_models(tmp_path / "models")["albert"])
    data = write_dataset(tmp_path / "data")
    chosen = settings(data, tmp_path, run_name="run", num_epochs=1, chart=["eval/accuracy"], model_name=model)
    result = train(load_config(None, chosen))
    export_run(result.run, "safetensors", tmp_path / "exported")
    write_trace(exact(), tmp_path / "trace")
    folders = [tmp_path / name for name in ("runs/run", "cache", "exported", "trace")]
    found = {path: stat.S_IMODE(path.stat().st_mode) for folder in folders for path in folder.rglob("*")}
    assert {path.suffix for path in found} >= {".safetensors", ".json", ".yaml", ".jsonl", ".log", ".html", ".npy"}
    assert {path: oct(mode) for path, mode in found.items() if mode != (0o750 if path.is_dir() else 0o640)} == {}


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_bytes(b"x")
    described = checksums(tmp_path, ["weights"])["weights"]

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Root may read everything.
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"weights can't be read \(Permission denied\); make it readable"):
        check_file(tmp_path / "weights", described, "copy it again")
