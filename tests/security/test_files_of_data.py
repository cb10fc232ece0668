"""Configurations, data sets, traces, results and weight files are data: reading one runs nothing."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isotrain import UserError
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.data.datasets import load_dataset
from isotrain.albert_core.runs.weight_files import weight_tensors
from isotrain.benchmarks.outcome.load import load_result
from isotrain.benchmarks.parity.trace import TENSOR_FILE, read_trace, write_trace
from support.bomb import Bomb
from support.command import Invoke, one_line_error
from support.parity_traces import exact
from support.small_job import settings, write_dataset

ESCAPES = "\x1b[31mred\x1b]0;title\x07"


def _npy(shape: str) -> bytes:
    """The beginning of an .npy file, with `shape` where its shape is described."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.fixture
def marker(tmp_path: Path) -> Any:
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "something ran"


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:pathlib.Path.touch [{}]",
        "!!python/name:os.system",
        "!!python/module:antigravity",
        "!evil x",
    ],
)
def test_a_configuration_makes_no_objects(tmp_path: Path, marker: Path, value: str) -> None:
    (tmp_path / "job.yaml").write_text(f"run_name: {value.format(marker)}\n")
    with pytest.raises(UserError, match=r"job\.yaml"):
        load_config(tmp_path / "job.yaml")


@pytest.mark.parametrize("name", ["data.pkl", "data.py", "train.parquet.py"])
def test_a_data_set_is_text(tmp_path: Path, marker: Path, name: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    (folder / "data.py").write_text(f"open({str(marker)!r}, 'w')")
    with pytest.raises(UserError):
        load_dataset(str(folder))
    with pytest.raises(UserError):
        load_dataset(str(folder / name), test_fraction=0.5)


def test_weights_in_npz_are_plain_arrays(tmp_path: Path, marker: Path) -> None:
    np.savez(tmp_path / "weights.npz", a=np.array([Bomb(marker)], dtype=object))
    with pytest.raises(UserError, match=r"no \.npz of plain arrays"):
        list(weight_tensors(tmp_path / "weights.npz"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", _npy("(1000000000, 1000000000)")),
        ("a.npy", _npy("__import__('os')")),
        ("a.txt", b"no array"),
        ("a.npy", b""),
    ],
)
def test_an_npz_that_lies_about_its_arrays_is_refused(
    invoke: Invoke, tmp_path: Path, name: str, content: bytes
) -> None:
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr(name, content)
    result = invoke("tt-formats", tmp_path / "w.npz")
    one_line_error(result)
    assert "ast." not in result[2]


def test_an_npz_that_unpacks_without_a_limit_is_refused_before_it_does(invoke: Invoke, tmp_path: Path) -> None:
    part = bytes(2**24)
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        file.write(_npy("(268435457,)"))
        for _ in range(65):
            file.write(part)
    one_line_error(invoke("tt-formats", tmp_path / "w.npz"), "unpacks from")


@pytest.mark.parametrize("command", ["show", "tt-formats", "compare"])
def test_nobody_waits_for_a_pipe(invoke: Invoke, tmp_path: Path, command: str) -> None:
    for name in ("summary.json", "model.safetensors", "result.json"):
        os.mkfifo(tmp_path / name)
    files = {"show": [tmp_path], "tt-formats": [tmp_path], "compare": [tmp_path / "result.json"] * 2}
    one_line_error(invoke(command, *files[command]))


def test_a_traces_tensors_are_no_pickle(tmp_path: Path, marker: Path) -> None:
    write_trace(exact(), tmp_path / "trace")
    (tmp_path / "trace" / TENSOR_FILE).write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(UserError, match="checksum"):
        read_trace(tmp_path / "trace")


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"schema": 1}', "null"])
def test_a_result_that_is_none_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError) as caught:
        load_result(tmp_path / "result.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_what_steers_a_terminal_does_not_reach_it(invoke: Invoke, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    for path in data.glob("*.csv"):
        path.write_text(path.read_text().replace(",card", f",{ESCAPES}"))
    (tmp_path / "job.yaml").write_text("num_epochs: 1\n")
    chosen = settings(data, tmp_path, num_epochs=1, run_name="run")
    code, out, err = invoke("train", "job.yaml", *(f"--set={item}" for item in chosen))
    assert code == 0, err
    shown = out + err + (tmp_path / "runs" / "run" / "train.log").read_text()
    texts = [f"lost {ESCAPES} card", "plastic chip pin", "lost stolen broken", "new order card"]
    code, out, err = invoke("predict", str(tmp_path / "runs" / "run"), *texts)
    assert code == 0, err
    assert "[31mred" in out, "the text and its label are shown"
    assert "\x1b]" not in shown + out + err
    assert "\x07" not in shown + out + err
    names = json.loads((tmp_path / "runs" / "run" / "labels.json").read_text())
    assert ESCAPES in names, "what is stored stays as it was"
