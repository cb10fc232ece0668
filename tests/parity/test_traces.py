"""Traces on disk and sides by name: whole or refused, in words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from isotrain import RunError, UserError
from isotrain.albert_core.config.keys import Keys
from isotrain.albert_core.config.schema import TrainConfig
from isotrain.benchmarks.parity.recording.recipe import COMPUTED, DATA, KEPT, recipe_of
from isotrain.benchmarks.parity.sides import parse_side
from isotrain.benchmarks.parity.trace import HEADER_FILE, TENSOR_FILE, Trace, read_trace, write_trace
from support.parity_traces import STEPS, exact, with_header


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_trace(exact(), tmp_path / "trace")
    return tmp_path / "trace"


def test_a_trace_comes_back_as_it_was_written(folder: Path) -> None:
    before, after = exact(), read_trace(folder)
    assert {name: array.tolist() for name, array in after.arrays.items()} == {
        name: array.tolist() for name, array in before.arrays.items()
    }
    assert before.header == after.header


def test_a_trace_keeps_all_that_its_run_says_of_its_machine(tmp_path: Path) -> None:
    machine = exact().header.environment.document() | {"threads": 4, "numpy": "2"}
    write_trace(with_header(exact(), environment=machine), tmp_path / "trace")
    assert json.loads((tmp_path / "trace" / HEADER_FILE).read_text())["environment"] == machine
    assert read_trace(tmp_path / "trace").header.environment.document() == machine


def test_traces_are_never_written_over(folder: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        write_trace(exact(), folder)


def test_nothing_is_left_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save", full)
    with pytest.raises(RunError, match="No space left"):
        write_trace(exact(), tmp_path / "trace")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: (path / HEADER_FILE).unlink(), "is no trace"),
        (lambda path: (path / HEADER_FILE).write_text("{"), "truncated JSON"),
        (lambda path: (path / HEADER_FILE).write_text("[]"), "a JSON list and no object"),
        (lambda path: (path / HEADER_FILE).write_text(json.dumps({"schema": "isotrain.bench/2"})), "isotrain.bench/2"),
        (lambda path: (path / TENSOR_FILE).write_bytes((path / TENSOR_FILE).read_bytes()[:-8]), "checksum differs"),
        (lambda path: (path / TENSOR_FILE).unlink(), "can't be read"),
    ],
)
def test_damaged_and_foreign_traces(folder: Path, damage: object, words: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=words):
        read_trace(folder)


def test_series_of_several_lengths(tmp_path: Path) -> None:
    trace = exact()
    write_trace(Trace(trace.header, trace.arrays | {"loss": np.zeros(3)}), tmp_path / "trace")
    with pytest.raises(UserError, match="must be one number"):
        read_trace(tmp_path / "trace")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": [1]}, "label"),
        ({"policy": "float32"}, "policy"),
        ({"adam_on_device": [1.0, 1.0]}, "adam_on_device"),
        ({"metrics": {}}, "metrics"),
        ({"metrics": [{"epoch": 1, "step": STEPS, "loss": 1.0, "accuracy": "high"}]}, "metrics"),
        ({"ended": "at step 3"}, "ended"),
        ({"replayed_sha256": 7}, "replayed_sha256"),
        ({"batches": 7}, "batches"),
        ({"environment": {}}, "environment"),
        ({"emulated": "no"}, "emulated"),
    ],
)
def test_a_header_that_is_not_as_it_should_be(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    trace = exact()
    write_trace(trace, tmp_path / "trace")
    file = tmp_path / "trace" / HEADER_FILE
    document = json.loads(file.read_text())
    for wrong in (document | changes, {key: value for key, value in document.items() if key not in changes}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=words):
            read_trace(tmp_path / "trace")


@pytest.mark.parametrize("step", [-1, STEPS + 1])
def test_an_evaluation_at_a_step_that_was_not_run(tmp_path: Path, step: int) -> None:
    trace = exact()
    metrics = [{"epoch": 1, "step": step, "loss": 1.0}]
    write_trace(with_header(trace, metrics=metrics), tmp_path / "trace")
    with pytest.raises(UserError, match=f"an evaluation at step {step} of {STEPS}"):
        read_trace(tmp_path / "trace")


@pytest.mark.parametrize("name", ["loss", "probe_logits", "replay"])
def test_numbers_of_another_kind(tmp_path: Path, name: str) -> None:
    trace = exact()
    write_trace(Trace(trace.header, trace.arrays | {name: trace.arrays[name] > 0}), tmp_path / "trace")
    with pytest.raises(UserError, match=f"has {name} of bool, not of float32 or float64"):
        read_trace(tmp_path / "trace")


def test_a_finished_run_without_an_evaluation(tmp_path: Path) -> None:
    trace = exact()
    write_trace(with_header(trace, metrics=[]), tmp_path / "trace")
    with pytest.raises(UserError, match="holds no evaluation"):
        read_trace(tmp_path / "trace")


def test_a_recipe_is_every_key_but_those_that_say_where_and_what_is_kept() -> None:
    left_out = [*DATA, *COMPUTED, *KEPT]
    keys = set(Keys.model_fields)
    assert set(left_out) <= keys
    recipe = recipe_of(TrainConfig(seed=5, tt={"arch": "blackhole"}), 10, num_labels=77)
    assert recipe.keys() == keys - set(left_out)
    assert (recipe["seed"], recipe["num_labels"], recipe["max_steps"], recipe["lora"]["rank"]) == (5, 77, 10, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": np.zeros((3, 4))}, "features of shape (3, 4)"),
        ({"features": np.zeros(16 * STEPS)}, "features of shape"),
        ({"probe_features": np.zeros((5, 4, 4))}, "probe_features of shape"),
        ({"right": np.zeros(3)}, "right of shape (3,)"),
        ({"head_loss": np.zeros(3)}, "head_loss of shape (3,)"),
        ({"head_logits": np.zeros((1, 64))}, "head_logits of shape (1, 64)"),
    ],
)
def test_a_head_that_is_not_as_it_should_be(tmp_path: Path, changes: dict[str, np.ndarray], words: str) -> None:
    trace = exact()
    head = {f"head_{name}": trace.arrays[name] for name in ("loss", "grad_norm", "update_norm")}
    head |= {"head_logits": trace.arrays["probe_logits"], "right": np.zeros(STEPS)}
    head |= {"features": np.zeros((16 * STEPS, 4)), "probe_features": np.zeros((1, 64, 4))}
    header = with_header(trace, batch_sizes=[16] * STEPS).header
    write_trace(Trace(header, trace.arrays | head), tmp_path / "right")
    read_trace(tmp_path / "right")
    write_trace(Trace(header, trace.arrays | head | changes), tmp_path / "wrong")
    with pytest.raises(UserError, match=re.escape(words)):
        read_trace(tmp_path / "wrong")
    without = {name: array for name, array in head.items() if name not in changes}
    if "head_logits" in changes or "features" in changes:
        write_trace(Trace(header, trace.arrays | without), tmp_path / "lacking")
        with pytest.raises(UserError, match="record it again"):
            read_trace(tmp_path / "lacking")


def test_sides() -> None:
    assert parse_side("cpu:float64").sets == ("backend=cpu", "use_tt=false", "dtype=float64")
    emulation = parse_side("tt:hifi2+bfp_bf8")
    assert (emulation.label, emulation.backend) == ("tt-emulated:hifi2+bfp_bf8", "tt-emulated")
    words = ("use_tt=false", "tt.math_fidelity=hifi2", "tt.weight_dtype=bfp_bf8")
    assert emulation.sets == ("backend=tt-emulated", *words)
    assert parse_side("tt-emulated:hifi2+bfp_bf8") == emulation
    elsewhere = parse_side("tt:hifi2+bfp_bf8", ["tt"])
    assert (elsewhere.label, elsewhere.sets) == ("tt:hifi2+bfp_bf8", ("backend=tt", *words))
    assert parse_side("tt:hardware").backend == "tt"
    assert parse_side("cuda:1:bf16").backend == "cuda:1"
    assert parse_side("cpu:float32+threads=1").sets[2:] == ("dtype=float32", "threads=1")
    assert parse_side("cpu").sets == ("backend=cpu", "use_tt=false")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu:float32", "backend 'gpu' does not exist; allowed are cpu, cuda"),
        ("cpu:hifi2", "'hifi2' does not exist on cpu; allowed are float32"),
        ("tt:hifi5", "allowed are .*hifi4"),
        ("cpu:float32:float64", r"write BACKEND:WORD\+WORD"),
    ],
)
def test_sides_that_mean_nothing(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_side(text)
