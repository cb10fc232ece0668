"""Nothing is written through a link: neither in a run nor in a trace that comes from a stranger."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from isotrain import UserError
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.train import train
from isotrain.albert_core.runs import files
from isotrain.albert_core.runs.folder import RunFolder, open_run
from isotrain.backends import ErrorBudget
from isotrain.benchmarks.harness.document import Sweep
from isotrain.benchmarks.outcome.build import write_result
from isotrain.benchmarks.parity.recording.record import record
from isotrain.benchmarks.parity.run import record_error_budget
from isotrain.benchmarks.parity.trace import read_trace, write_trace
from support.command import Invoke
from support.parity_traces import exact
from support.small_job import settings, write_dataset

PRECIOUS = "precious\n"
WRITTEN = [
    ".lock",
    "train.log",
    "metrics.jsonl",
    "metrics.jsonl.tmp",
    "config.yaml",
    "run.json",
    "manifest.json",
    "summary.json",
    "labels.json",
    "chart.html",
    "tokenizer/tokenizer.json",
    "model/model.safetensors",
]
FOLDERS = ["checkpoints", "tokenizer", "model", "encoder", "tensorboard", "wandb"]


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped and can be resumed."""
    folder = tmp_path_factory.mktemp("stopped")
    chosen = settings(write_dataset(folder / "data"), folder, run_name="run", stop_at_step=3, chart=["eval/accuracy"])
    return train(load_config(None, chosen)).run.path


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def resume(folder: Path) -> None:
    train(load_config(folder / "config.yaml", ["stop_at_step=5"]), resume=RunFolder(folder))


@pytest.mark.parametrize("name", WRITTEN)
def test_a_run_with_a_linked_file_is_refused_and_the_victim_left_alone(copy: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    if (copy / name).is_file():
        shutil.move(copy / name, victim)
    else:
        victim.write_text(PRECIOUS)
    before = victim.read_bytes()
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).symlink_to(victim)
    with pytest.raises(UserError, match=f"{name} is a symbolic link") as caught:
        resume(copy)
    assert "\n" not in str(caught.value)
    assert victim.read_bytes() == before


@pytest.mark.parametrize("name", FOLDERS)
def test_a_run_with_a_linked_folder_is_refused(copy: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    if (copy / name).is_dir():
        shutil.move(copy / name, elsewhere)
    else:
        elsewhere.mkdir()
    before = sorted(path.name for path in elsewhere.rglob("*"))
    (copy / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{name} is a symbolic link.* mount it there"):
        resume(copy)
    assert sorted(path.name for path in elsewhere.rglob("*")) == before


@pytest.mark.parametrize("name", [".lock", "train.log"])
def test_what_is_added_to_is_a_file_of_one_name(copy: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text(PRECIOUS)
    (copy / name).unlink()
    os.link(victim, copy / name)
    with pytest.raises(UserError, match=f"{name} is no file, or has a second name"):
        resume(copy)
    assert victim.read_text() == PRECIOUS


@pytest.mark.parametrize("name", [".lock", "train.log", "metrics.jsonl", "summary.json", "chart.html"])
def test_a_pipe_in_a_run_is_refused_and_not_waited_for(copy: Path, name: str) -> None:
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    with pytest.raises(UserError, match=f"{name} is no file and no folder"):
        resume(copy)


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "chart.html", "config-until-step-3.yaml"])
def test_a_hard_link_is_replaced_and_its_other_name_left_alone(copy: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text('{"step": 1}\n')
    (copy / name).unlink(missing_ok=True)
    os.link(victim, copy / name)
    resume(copy)
    assert victim.read_text() == '{"step": 1}\n'


def test_the_runs_folder_itself_may_be_a_link_of_the_users(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copy)
    resume(tmp_path / "link")
    assert open_run(copy).summary.is_file()


def test_a_trace_with_a_link_in_it_gets_no_error_budgets(tmp_path: Path) -> None:
    write_trace(exact(), tmp_path / "trace")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "trace" / "error-budgets").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="error-budgets is a symbolic link"):
        record_error_budget(read_trace(tmp_path / "trace"), ErrorBudget("ideal", "float32"), 60.0, print)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_recording_a_strangers_recipe_uses_no_store(tmp_path: Path) -> None:
    chosen = settings(
        write_dataset(tmp_path / "data"),
        tmp_path,
        remote_path=str(tmp_path / "store"),
        sync_to_storage=True,
        load_from_storage=True,
        resume_from_checkpoint=True,
        save_strategy="step",
    )
    assert record(None, "cpu:float32", chosen, steps=2).steps == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_results_and_logs_replace_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text(PRECIOUS)
    for name in ("result.json", "worker.log"):
        (tmp_path / name).symlink_to(victim)
    write_result(Sweep(sweep=[]), tmp_path / "result.json")
    with files.open_anew(tmp_path / "worker.log") as log:
        log.write(b"words")
    assert victim.read_text() == PRECIOUS
    assert not (tmp_path / "worker.log").is_symlink()


@pytest.mark.parametrize("kind", ["nowhere", "itself", "a file", "another folder"])
def test_a_cache_entry_that_is_a_link_is_made_anew_and_nothing_is_written_through_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke
) -> None:
    monkeypatch.setenv("ISOTRAIN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    job = [f"--set={item}" for item in settings(write_dataset(tmp_path / "data"), tmp_path, num_epochs=1)]
    assert invoke("train", "quickstart", *job, "--set", "run_name=first")[0] == 0
    entries = [path for path in (tmp_path / "cache").glob("*/*") if path.is_dir()]
    assert entries
    for entry in entries:
        shutil.rmtree(entry)
        targets = {"nowhere": "/no/where", "itself": entry, "a file": tmp_path / "file"}
        entry.symlink_to(targets.get(kind, tmp_path / "folder"))
    code, _, err = invoke("train", "quickstart", *job, "--set", "run_name=second")
    assert code == 0, err
    assert "Traceback" not in err
    assert (tmp_path / "file").read_text() == "mine"
    assert list((tmp_path / "folder").iterdir()) == []
