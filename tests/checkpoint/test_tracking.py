"""Where figures go: the run's own JSONL, W&B offline and TensorBoard; and that no tracker can end a run."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.schema import TrainConfig
from isotrain.albert_core.output.trackers.base import TrackedRun, Tracker
from isotrain.albert_core.output.tracking import JsonlTracker, Trackers, make_trackers
from isotrain.kernels.install import install_hint
from support import forks


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_jsonl_has_one_object_a_line_at_once_and_only_valid_json(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log(1, {"epoch": 0.1, "train/loss": torch.tensor(0.5), "eval/accuracy": np.float32(0.25)})
    assert lines(tracker.path) == [{"step": 1, "epoch": 0.1, "train/loss": 0.5, "eval/accuracy": 0.25}]
    tracker.log(2, {"a": float("nan"), "b": float("inf"), "c": torch.tensor(float("-inf")), "note": "x\ny"})
    logged = lines(tracker.path)[1]
    assert logged == {"step": 2, "a": "NaN", "b": "Infinity", "c": "-Infinity", "note": "x\ny"}
    assert float(logged["c"]) == float("-inf")


def test_an_emulated_device_stands_in_every_line_and_in_the_name_of_every_chart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[TrackedRun] = []
    folders: list[str] = []
    trackers = "isotrain.albert_core.output.trackers"
    monkeypatch.setattr(f"{trackers}.wandb.WandbTracker", lambda run: opened.append(run) or Tracker(run))
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", lambda folder: folders.append(folder))
    config = TrainConfig(use_wandb=True, use_tensorboard=True, wandb_run_name="name-x")
    make_trackers(config, tmp_path, None, "npu (emulated)").log(1, {"train/loss": 0.5})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "device": "npu (emulated)", "train/loss": 0.5}]
    assert [run.name for run in opened] == ["name-x on npu (emulated)"]
    assert folders == [str(tmp_path / "tensorboard" / "npu (emulated)")]


@pytest.mark.parametrize(
    "torn", [b"", b'{"step": 2, "train/lo', b'{"step": 2}', b"\xff\xfe", b'{"step": 9, "train/loss": 1.0}\n{']
)
def test_a_resume_keeps_the_lines_up_to_its_step_and_no_torn_one(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    for step in (1, 2, 2, 3, 4):
        tracker.log(step, {"train/loss": step / 10})
    path.write_bytes(path.read_bytes() + torn)
    tracker.truncate_after(2)
    tracker.log(3, {"train/loss": 0.3})
    kept = [line["step"] for line in lines(path)]
    assert kept == ([1, 2, 2, 2, 3] if torn == b'{"step": 2}' else [1, 2, 2, 3])
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_truncating_what_is_not_there_makes_nothing_and_a_bad_line_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    JsonlTracker(path).truncate_after(5)
    assert not path.exists()
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    JsonlTracker(path).truncate_after(5)
    assert [line["step"] for line in lines(path)] == [1, 2]
    assert "metrics.jsonl:2 is no line of figures" in caplog.text


def test_a_record_that_can_not_be_written_ends_the_run_by_name(tmp_path: Path) -> None:
    trackers = make_trackers(TrainConfig(), tmp_path / "missing")
    with pytest.raises(UserError, match=r"can't write .*metrics\.jsonl"):
        trackers.log(1, {"train/loss": 1.0})


class Failing(Tracker):
    """A tracker whose service is down from its second call on."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def log(self, step: int, values: dict[str, Any]) -> None:
        self.calls.append(f"log {step}")
        if step > 1:
            raise ConnectionResetError("service is down")

    def finish(self, status: str) -> None:
        self.calls.append(status)


def test_a_tracker_that_fails_is_warned_about_once_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing = Failing()
    trackers = Trackers([failing, JsonlTracker(tmp_path / "metrics.jsonl")])
    for step in (1, 2, 3):
        trackers.log(step, {"train/loss": 1.0})
    trackers.finish("completed")
    assert failing.calls == ["log 1", "log 2"]
    (warning,) = caplog.records
    assert "Failing failed at log of step 2 (ConnectionResetError: service is down)" in warning.getMessage()
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("extra", "module"),
    [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow"), ("trackio", "trackio")],
)
def test_a_missing_package_is_one_warning_with_the_fix(
    extra: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    trackers = make_trackers(TrainConfig(trackers=[extra]), tmp_path)
    trackers.log(1, {"train/loss": 1.0})
    trackers.finish("completed")
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert install_hint(extra) in warning.getMessage()
    assert len(lines(tmp_path / "metrics.jsonl")) == 1


@pytest.fixture
def offline_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install -e '.[wandb]'")
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_CACHE_DIR": str(tmp_path / "cache"),
        "WANDB_DATA_DIR": str(tmp_path / "data"),
        "WANDB_CONFIG_DIR": str(tmp_path / "config"),
    }.items():
        monkeypatch.setenv(name, value)
    yield wandb
    wandb.teardown()


def wandb_record(run_dir: Path, wandb: Any) -> bytes:
    """The transaction log of the one offline run in `run_dir`, complete once W&B's service has ended."""
    wandb.teardown()
    (path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    return path.read_bytes()


def test_wandb_offline_writes_under_the_run_and_a_resume_keeps_the_id(
    tmp_path: Path, offline_wandb: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "model").mkdir(parents=True)
    (run_dir / "model" / "head.safetensors").write_bytes(b"weights")
    keys = {
        "use_wandb": True,
        "wandb_project": "project-x",
        "wandb_run_name": "name-x",
        "wandb_tags": ["tag-x"],
        "wandb_watch_mode": "all",
        "wandb_log_freq": 10,
        "model_to_wandb": True,
    }
    trackers = make_trackers(TrainConfig.model_validate(keys), run_dir)
    run = offline_wandb.run
    assert (run.project, run.name, run.tags) == ("project-x", "name-x", ("tag-x",))
    assert run.config["learning_rate"] == TrainConfig().learning_rate
    head = torch.nn.Linear(3, 2)
    trackers.watch(head)
    head(torch.ones(1, 3)).sum().backward()
    with torch.no_grad():
        head.bias[0] = float("nan")
    for step in (10, 20):
        trackers.before_step(step)
        trackers.log(step, {"train/loss": 1.5, "eval/loss": float("nan")})
    trackers.summary({"best/accuracy": 0.5})
    trackers.artifact(run_dir / "model")
    trackers.finish("completed")
    assert [line for line in caplog.records if line.name.startswith("isotrain")] == []
    record = wandb_record(run_dir, offline_wandb)
    for logged in ("train/loss", "parameters/weight", "gradients/weight", "best/accuracy", "name-x-model"):
        assert logged.encode() in record, logged

    # W&B names its folders by the second, and both parts may start in the same one.
    (run_dir / "wandb").rename(run_dir / "wandb of the first part")
    keys["wandb_watch_mode"] = "parameters"
    trackers = make_trackers(TrainConfig.model_validate(keys), run_dir, resume_step=10)
    assert offline_wandb.run.id == run.id == (run_dir / "wandb-run-id").read_text()
    trackers.watch(head)
    for step in (11, 20):
        trackers.before_step(step)
    trackers.log(20, {"train/loss": 1.25})
    trackers.finish("stopped")
    record = wandb_record(run_dir, offline_wandb)
    assert b"1.25" in record
    assert b"parameters/weight" in record
    assert b"gradients/weight" not in record
    assert b"name-x-model" not in record
    assert [line["step"] for line in lines(run_dir / "metrics.jsonl")] == [10, 20]


def test_wandb_without_watch_mode_and_model_to_wandb_records_no_weights_and_uploads_nothing(
    tmp_path: Path, offline_wandb: Any
) -> None:
    (tmp_path / "head.safetensors").write_bytes(b"weights")
    trackers = make_trackers(TrainConfig(use_wandb=True, wandb_log_freq=1), tmp_path)
    trackers.watch(torch.nn.Linear(3, 2))
    trackers.before_step(1)
    assert (offline_wandb.run.project, offline_wandb.run.name) == ("isotrain", tmp_path.name)
    trackers.artifact(tmp_path / "head.safetensors")
    trackers.finish("failed")
    record = wandb_record(tmp_path, offline_wandb)
    assert b"head.safetensors" not in record
    assert b"parameters/weight" not in record


def test_wandb_that_can_not_log_in_is_one_warning(
    tmp_path: Path, offline_wandb: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**_: Any) -> None:
        raise offline_wandb.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setattr(offline_wandb, "init", refuse)
    make_trackers(TrainConfig(use_wandb=True), tmp_path).log(1, {"train/loss": 1.0})
    (warning,) = caplog.records
    assert "api_key not configured" in warning.getMessage()


def test_tensorboard_events_and_those_a_resume_supersedes(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed: pip install -e '.[tensorboard]'",
    )
    config = TrainConfig(use_tensorboard=True)
    for resume_step, steps, loss in ((None, (1, 2, 3), 1.0), (1, (2, 3, 4), 2.0)):
        trackers = make_trackers(config, tmp_path, resume_step)
        for step in steps:
            trackers.log(step, {"train/loss": loss, "note": "text"})
        trackers.summary({"eval/accuracy": 0.5, "bad": float("nan")})
        trackers.finish("completed")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 2.0),
        (4, 2.0),
    ]


KILLED_AFTER = 7

# Seven steps, logged to all trackers, and a kill; or a part that ends by itself.
PART = """
import logging, os, signal, sys
from pathlib import Path
from isotrain.albert_core.config.schema import TrainConfig
from isotrain.albert_core.output.tracking import make_trackers

logging.basicConfig()
run_dir, first, last, resume_step, ending = sys.argv[1:]
resume = int(resume_step) if resume_step != "none" else None
config = TrainConfig(use_wandb=True, use_tensorboard=True)
trackers = make_trackers(config, Path(run_dir), resume)
for step in range(int(first), int(last) + 1):
    trackers.log(step, {"train/loss": float(step) + (0.5 if ending == "completed" else 0.0)})
if ending == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
trackers.finish(ending)
"""


def wandb_steps(run_dir: Path) -> list[int]:
    """The value "step" of every line of figures in the offline parts that ``wandb sync`` would send, in their order."""
    record_type = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record
    steps = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        data, place, whole = path.read_bytes(), 7, b""
        while place < len(data):
            # LevelDB's log: blocks of 32 KiB, in which each piece has a checksum, a length and a kind.
            left = 32768 - place % 32768
            if left < 7:
                place += left
                continue
            length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
            whole += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):
                record = record_type.FromString(whole)
                whole = b""
                items = record.history.item if record.HasField("history") else ()
                steps += [int(item.value_json) for item in items if (item.key or item.nested_key[0]) == "step"]
    return steps


def scalars(folder: Path, name: str = "train/loss") -> list[tuple[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


@pytest.mark.parametrize("ending", ["killed", "failed", "stopped"])
def test_what_trackers_lack_after_a_kill_is_filled_up_and_no_step_is_there_twice(
    tmp_path: Path, offline_wandb: Any, ending: str
) -> None:
    def part(*arguments: object) -> str:
        words = [str(word) for word in arguments]
        done = forks.run(["-c", PART, str(tmp_path), *words])
        assert done.returncode == (-9 if words[-1] == "killed" else 0), done.stderr
        return done.stderr

    first = 0 if ending == "stopped" else 2
    part(1, KILLED_AFTER, "none", ending)
    # The newest checkpoint is of step 5: two steps are logged again. One that stopped saved its last step.
    saved = KILLED_AFTER if ending == "stopped" else KILLED_AFTER - first
    part(saved + 1, 9, saved, "completed")
    assert wandb_steps(tmp_path) == list(range(1, 10))
    expected = [(step, step + (0.5 if step > saved else 0.0)) for step in range(1, 10)]
    assert scalars(tmp_path / "tensorboard") == expected
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == list(range(1, 10))


def test_an_evaluation_that_is_made_again_is_there_once(tmp_path: Path, offline_wandb: Any) -> None:
    config = TrainConfig(use_wandb=True, use_tensorboard=True)
    for resume_step in (None, 2):
        trackers = make_trackers(config, tmp_path, resume_step, evaluated=False)
        for step in () if resume_step else (1, 2):
            trackers.log(step, {"train/loss": float(step)})
        trackers.log(2, {"eval/loss": 0.5 if resume_step else 0.25})
        trackers.finish("failed")
        offline_wandb.teardown()
    assert wandb_steps(tmp_path) == [1, 2, 2]
    assert scalars(tmp_path / "tensorboard") == [(1, 1.0), (2, 2.0)]
    assert scalars(tmp_path / "tensorboard", "eval/loss") == [(2, 0.5)]


def test_a_part_that_was_sent_to_wandb_is_not_sent_again_and_that_is_said(
    tmp_path: Path, offline_wandb: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrainConfig(use_wandb=True)
    make_trackers(config, tmp_path).log(1, {"train/loss": float("nan")})
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    (folder / f"run-{offline_wandb.run.id}.wandb.synced").touch()
    offline_wandb.teardown()
    make_trackers(config, tmp_path, 1).finish("stopped")
    assert "W&B has a part of this run that was killed" in caplog.text
    assert folder.is_dir()


def test_trackers_that_are_asked_for_in_the_middle_get_all_that_was_logged(tmp_path: Path, offline_wandb: Any) -> None:
    trackers = make_trackers(TrainConfig(), tmp_path)
    for step in (1, 2):
        trackers.log(step, {"train/loss": float("nan") if step == 1 else 0.5, "note": "text"})
    config = TrainConfig(use_wandb=True, use_tensorboard=True)
    trackers = make_trackers(config, tmp_path, 2)
    trackers.log(3, {"train/loss": 0.25})
    trackers.finish("completed")
    # W&B's service writes the last of it when it ends.
    offline_wandb.teardown()
    assert wandb_steps(tmp_path) == [1, 2, 3]
    assert [step for step, _ in scalars(tmp_path / "tensorboard")] == [1, 2, 3]
