"""Trackers by name: MLflow, Trackio, and those of installed packages. None of them can end a run."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isotrain.albert_core.config.schema import TrainConfig
from isotrain.albert_core.output.trackers.registry import TRACKERS, tracker_class
from isotrain.albert_core.output.tracking import make_trackers
from support.command import Invoke, one_line_error
from support.fake_trackers import FakeTrackio, fake_mlflow
from support.packages import described

PACKAGE = """
import json
from isotrain.albert_core.output.trackers.base import Tracker

class Kept(Tracker):
    def __init__(self, run):
        self.file = run.folder / "kept.jsonl"
        for line in run.lines:
            self.log(line["step"], {"before": True})
        self.write({"name": run.name, "seed": run.config.seed, "until": run.until})

    def write(self, value):
        with self.file.open("a") as file:
            file.write(json.dumps(value) + "\\n")

    def log(self, step, values):
        self.write([step, sorted(values)])

    def finish(self, status):
        self.write(status)

class Needy(Tracker):
    def __init__(self, run):
        import no_such_module_here

class Refusing(Tracker):
    def __init__(self, run):
        raise ConnectionError("service is down\\nand stays so")
"""


BROKEN = """
import torch

class Broken:
    calls = 0

    def model(self, seed):
        return torch.nn.Linear(1, 1)

    def batches(self, seed):
        return [torch.ones(1, 1)] * 9

    def loss(self, model, batch):
        self.calls += 1
        if self.calls > 5:
            raise {error}
        return model(batch).sum()
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that adds trackers."""
    points = {name: f"fake_trackers:{name.title()}" for name in ("kept", "needy", "refusing", "gone")}
    points |= {"odd": "pathlib:Path", "wandb": "fake_trackers:Kept"}
    folder = described(tmp_path / "site", "fake-trackers", "isotrain.trackers", points)
    (folder / "fake_trackers.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "fake_trackers", raising=False)


def test_the_built_in_trackers_are_known() -> None:
    assert TRACKERS.names()[:4] == ["wandb", "tensorboard", "mlflow", "trackio"]
    assert [tracker_class(name).__name__ for name in TRACKERS.names()[:4]] == [
        "WandbTracker", "TensorBoardTracker", "MlflowTracker", "TrackioTracker",
    ]  # fmt: skip


def test_each_tracker_is_opened_once() -> None:
    config = TrainConfig(use_wandb=True, use_tensorboard=True, trackers=["mlflow", "wandb", "mlflow"])
    assert config.tracker_names == ["wandb", "tensorboard", "mlflow"]


def test_an_unknown_tracker_is_one_line_before_anything_is_made(invoke: Invoke, tmp_path: Path) -> None:
    said = ("tracker 'mlfow' does not exist; did you mean mlflow? allowed are wandb, tensorboard, mlflow, trackio",)
    one_line_error(invoke("train", "quickstart", "--set=trackers=[mlfow]"), *said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("installed")
def test_an_installed_package_adds_a_tracker(invoke: Invoke, tmp_path: Path) -> None:
    assert TRACKERS.names()[4:] == ["gone", "kept", "needy", "odd", "refusing"]
    assert tracker_class("wandb").__name__ == "WandbTracker", "a built-in name stays"
    settings = (
        *("dataset_id=embedded:intents?train=154&test=77", "model_name=random:tiny", "dtype=float32", "run_name=mine"),
        *("max_length=8", "mlp_hidden_size=8", "max_steps=4", "steps_freq=2", "save_strategy=step", "trackers=[kept]"),
    )
    code, _, err = invoke("train", "quickstart", *(f"--set={key}" for key in (*settings, "stop_at_step=2")))
    assert code == 0, err
    code, _, err = invoke("train", "--resume", "runs/mine", "--set=stop_at_step=null")
    assert code == 0, err
    kept = (tmp_path / "runs" / "mine" / "kept.jsonl").read_text().splitlines()
    assert kept[0] == '{"name": "mine", "seed": 23, "until": null}'
    resumed = kept.index('{"name": "mine", "seed": 23, "until": 2}')
    assert kept[resumed - 2 : resumed] == ['"stopped"', '[2, ["before"]]']
    assert [line[:3] for line in kept[resumed + 1 : -1]] == ["[4,", "[4,"]
    assert kept[-1] == '"completed"'


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("error", "status"), [("KeyboardInterrupt", "stopped"), ("RuntimeError", "failed")])
def test_a_run_that_a_user_breaks_off_is_not_called_failed(
    invoke: Invoke, tmp_path: Path, error: str, status: str
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN.format(error=error))
    invoke("train", "broken.py:Broken", "--set=run_name=mine", "--set=trackers=[kept]")
    kept = (tmp_path / "runs" / "mine" / "kept.jsonl").read_text().splitlines()
    assert json.loads(kept[-1]) == status


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone", "tracker 'gone' is registered as 'fake_trackers:Gone', which can't be loaded"),
        ("odd", "tracker 'odd' is registered as 'pathlib:Path', which is no isotrain Tracker class"),
    ],
)
def test_what_a_package_registers_wrongly_is_one_line(invoke: Invoke, tmp_path: Path, name: str, said: str) -> None:
    one_line_error(invoke("train", "quickstart", f"--set=trackers={name}"), said)
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("needy", "tracker needy can't be imported (No module named 'no_such_module_here'): install the package"),
        ("refusing", "tracker refusing can't be opened (ConnectionError: service is down"),
    ],
)
def test_a_tracker_that_can_not_be_opened_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, said: str
) -> None:
    trackers = make_trackers(TrainConfig(trackers=[name]), tmp_path)
    trackers.log(1, {"train/loss": 1.0})
    (warning,) = caplog.records
    assert said in warning.getMessage()
    assert "\n" not in warning.getMessage()
    assert (tmp_path / "metrics.jsonl").is_file()


@pytest.fixture(params=["fake", "real"])
def mlflow(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "real":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        return pytest.importorskip("mlflow", reason="mlflow is not installed: pip install -e '.[mlflow]'")
    module = fake_mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def test_mlflow_continues_the_run_and_gets_what_it_lacks(
    mlflow: Any, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrainConfig(trackers=["mlflow"], wandb_project="project-x")
    trackers = make_trackers(config, run_dir)
    for step, loss in ((1, math.nan), (2, 0.5), (3, 0.25)):
        trackers.log(step, {"epoch": step / 10, "train/loss": loss, "note": "text"})
    trackers.summary({"status": "stopped", "eval/loss": 0.5, "best": {"step": 3}})
    trackers.finish("stopped")
    client = mlflow.MlflowClient()
    (run_id,) = [(run_dir / "mlflow-run-id").read_text()]
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("KILLED", "mine")
    assert run.info.experiment_id == client.get_experiment_by_name("project-x").experiment_id
    assert (run.data.params["seed"], run.data.params["trackers"]) == ("23", "['mlflow']")
    assert (run.data.tags["status"], run.data.tags["best"]) == ("stopped", '{"step": 3}')

    # A line that a kill kept from MLflow.
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "epoch": 0.2, "eval/loss": 0.75}\n')
    caplog.clear()
    trackers = make_trackers(config.model_copy(update={"learning_rate": 0.5}), run_dir, 2)
    trackers.log(3, {"train/loss": 0.125})
    trackers.summary({"status": "completed"})
    trackers.finish("completed")
    (warning,) = [line.getMessage() for line in caplog.records if line.name.startswith("isotrain")]
    assert "MLflow has figures of this run from after step 2" in warning
    losses = [(one.step, one.value) for one in client.get_metric_history(run_id, "train/loss")]
    assert math.isnan(losses[0][1])
    assert losses[1:] == [(2, 0.5), (3, 0.25), (3, 0.125)]
    assert [(one.step, one.value) for one in client.get_metric_history(run_id, "eval/loss")] == [(2, 0.75)]
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "completed")
    make_trackers(config, run_dir, 3).finish("failed")
    assert client.get_run(run_id).info.status == "FAILED"


def test_mlflow_says_what_a_run_that_begins_again_repeats(
    mlflow: Any, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert mlflow is sys.modules["mlflow"]
    config = TrainConfig(trackers=["mlflow"])
    make_trackers(config, run_dir).log(1, {"train/loss": 0.5})
    assert "MLflow has figures" not in caplog.text
    # Killed before its first checkpoint.
    make_trackers(config, run_dir, 0)
    assert "MLflow has figures of this run from after step 0" in caplog.text


@pytest.fixture(params=["fake", "real"])
def trackio_logs(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], list[dict[str, Any]]]:
    """What Trackio has, by project and name of the run."""
    if request.param == "real":
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
        pytest.importorskip("trackio", reason="trackio is not installed: pip install -e '.[trackio]'")
        storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
        return lambda project, name: storage.get_logs(project, name)
    module = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", module)
    return lambda project, name: module.logs[project, name]


def test_trackio_continues_the_run_and_gets_what_it_lacks(
    trackio_logs: Callable[[str, str], list[dict[str, Any]]],
    run_dir: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = TrainConfig(trackers=["trackio"], wandb_project="project-x")
    trackers = make_trackers(config, run_dir)
    for step in (1, 2, 3):
        trackers.log(step, {"train/loss": step / 4, "note": "text"})
    trackers.finish("stopped")
    name = (run_dir / "trackio-run-name").read_text()
    assert name.startswith("mine-")
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/loss": 1.0}\n')
    make_trackers(config, run_dir, 4).finish("stopped")
    assert [line for line in caplog.records if "second time" in line.getMessage()] == []
    trackers = make_trackers(config, run_dir, 3)
    trackers.log(4, {"train/loss": 2.0})
    trackers.finish("completed")
    assert "Trackio has figures of this run from after step 3" in caplog.text
    logged = [(line["step"], line["train/loss"]) for line in trackio_logs("project-x", name)]
    assert sorted(logged) == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0), (4, 2.0)]
    assert capsys.readouterr().out == "", "stdout is the command's own"


def test_a_run_of_the_same_name_is_another_one(
    trackio_logs: Callable[[str, str], list[dict[str, Any]]], tmp_path: Path
) -> None:
    names = set()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        make_trackers(TrainConfig(trackers=["trackio"], wandb_run_name="same"), tmp_path / folder).finish("completed")
        names.add((tmp_path / folder / "trackio-run-name").read_text())
    assert len(names) == 2
