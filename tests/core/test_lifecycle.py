"""A run's life from outside: begun by one command, stopped anywhere, its folder taken away, its disk full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isotrain import RunError, UserError
from isotrain.albert_core.config.load import ResolvedConfig, load_config
from isotrain.albert_core.loop import build, start
from isotrain.albert_core.loop import train as train_module
from isotrain.albert_core.loop.evaluate import evaluate
from isotrain.albert_core.loop.train import TrainResult, train
from isotrain.albert_core.processes.signals import STOPPING, stop_on_signals
from isotrain.albert_core.runs import saved_model
from isotrain.albert_core.runs.files import temporary_name
from isotrain.albert_core.runs.folder import RunFolder
from isotrain.albert_core.runs.manifest import MODEL, check_run
from support.small_job import metrics, write_dataset

Run = Callable[..., TrainResult]
Configure = Callable[..., ResolvedConfig]


def figures(result: TrainResult) -> list[tuple[Any, ...]]:
    """What each line of metrics.jsonl says that no clock has a part in."""
    return [
        tuple(sorted((name, value) for name, value in line.items() if "second" not in name)) for line in metrics(result)
    ]


def same_end(one: TrainResult, other: TrainResult) -> None:
    assert figures(one) == figures(other)
    for name in ("model/model.safetensors", "labels.json"):
        assert (one.run.path / name).read_bytes() == (other.run.path / name).read_bytes()


def checkpoints(result: TrainResult) -> set[str]:
    """The steps that are kept; one that was saved twice counts once."""
    return {path.name.partition(".")[0] for path in result.run.checkpoints.iterdir()}


@pytest.mark.parametrize("which", [1, 2], ids=["in between", "the last"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"gradient_accumulation_steps": 3, "keep_last_n": 1, "save_optim": False, "save_strategy": "step"},
        {"freeze_encoder": False, "learning_rate": 1e-3, "keep_last_n": 0, "threads": 1},
        {"save_strategy": "no"},
    ],
    ids=["cached", "accumulated", "whole", "unsaved"],
)
def test_a_signal_in_an_evaluation_stops_it_and_the_resume_makes_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, which: int, keys: dict[str, Any]
) -> None:
    keys = {"eval_batch_size": 10, "num_epochs": 2} | keys
    straight = run(run_name="straight", **keys)
    asked: list[int] = []
    evaluations: list[Any] = []

    def signalled(job: Any, model: Any, source: Any, stopped: Callable[[], bool]) -> Any:
        def now() -> bool:
            asked.append(len(evaluations))
            if len(evaluations) == which and asked.count(which) == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
            return stopped()

        evaluations.append(source)
        return evaluate(job, model, source, now)

    with monkeypatch.context() as patch:
        patch.setattr(build, "evaluate", signalled)
        cut = run(run_name="cut", **keys)
    assert cut.status == "stopped"
    assert len(asked) == 3 * which - 1, "it stops before the batch after the signal"
    assert cut.step == straight.total_steps // 2 * which
    again = run(resume=cut.run, **keys)
    assert again.status == "completed"
    same_end(again, straight)
    if keys.get("save_strategy") != "no":
        assert checkpoints(again) == checkpoints(straight)
    assert (again.best, again.metrics) == (straight.best, straight.metrics)


def test_an_evaluation_made_by_a_resume_that_is_killed_before_its_save_is_recorded_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run(run_name="straight", eval_batch_size=10)

    with monkeypatch.context() as patch:
        patch.setattr(build, "evaluate", lambda *_: None)
        cut = run(run_name="cut", eval_batch_size=10)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "save_now", die)
        with pytest.raises(KeyboardInterrupt, match=r"continue with: .*train --resume .*/cut"):
            run(resume=cut.run, eval_batch_size=10)
    same_end(run(resume=cut.run, eval_batch_size=10), straight)


def test_an_error_behind_a_swallowed_interruption_is_the_interruption() -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        raise TypeError("what a library trips over")
    with pytest.raises(TypeError, match="its own"), stop_on_signals():
        raise TypeError("its own")


def test_an_interruption_in_a_callback_is_noted_and_not_printed(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from isotrain.albert_core.processes import signals

class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

def traced(frame, event, argument):
    # Inside of the hook, too.
    if frame.f_code is signals._unraisable.__code__:
        os.kill(os.getpid(), signal.SIGINT)

def command():
    with signals.stop_on_signals() as stop:
        sys.settrace(traced)
        late = Late()
        del late
        sys.settrace(None)
        print("noted", stop.requested, flush=True)
    sys.exit(0)

signals.run_program(command, 130)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "noted True\n", "")


def test_every_schedulers_signal_asks_and_nohup_is_respected() -> None:
    with stop_on_signals() as stop:
        stop.loop_started = True
        for number in STOPPING:
            stop.signal = None
            os.kill(os.getpid(), number)
            assert stop.signal == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGUSR2)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_command_begins_goes_on_and_ends_at_once(run: Run) -> None:
    straight = run(run_name="straight")
    auto: dict[str, Any] = {"run_name": "job", "resume_from_checkpoint": "auto"}
    first = run(stop_at_step=5, **auto)
    assert (first.status, first.step) == ("stopped", 5)
    second = run(**auto)
    same_end(second, straight)
    before = {path: path.stat().st_mtime_ns for path in second.run.path.rglob("*")}
    third = run(**auto)
    assert third.before
    assert (third.status, third.step, third.best, third.metrics) == (
        "completed",
        second.step,
        second.best,
        {name: second.metrics[name] for name in second.metric_names},
    )
    assert {path: path.stat().st_mtime_ns for path in second.run.path.rglob("*")} == before
    assert run(num_epochs=3, **auto).step == 36, "more to do is done"


def test_a_stop_at_a_step_that_is_reached_already_makes_no_step(run: Run) -> None:
    auto: dict[str, Any] = {"run_name": "job", "resume_from_checkpoint": "auto"}
    for stop_at_step in (5, 5, 3):
        result = run(stop_at_step=stop_at_step, **auto)
        assert (result.status, result.step) == ("stopped", 5)
    assert run(**auto).status == "completed"


@pytest.mark.parametrize("said", [{"status": "completed"}, {"best": {"eval/loss": 1.0}}, {"step": "5"}, {"model": 1}])
def test_a_summary_that_lost_something_is_made_anew(run: Run, said: dict[str, Any]) -> None:
    auto: dict[str, Any] = {"run_name": "job", "resume_from_checkpoint": "auto"}
    first = run(**auto)
    whole = json.loads(first.run.summary.read_text())
    first.run.summary.write_text(json.dumps(said if "status" in said else whole | said))
    again = run(**auto)
    made = json.loads(again.run.summary.read_text())
    assert (again.status, again.best, again.metrics) == ("completed", first.best, first.metrics)
    assert all(made[name] == whole[name] for name in ("status", "step", "total_steps", "model", "best", "eval/loss"))


def test_the_one_command_needs_a_name_and_a_run(configure: Configure, run: Run) -> None:
    with pytest.raises(UserError, match="needs run_name"):
        configure(resume_from_checkpoint="auto")
    folder = Path(configure().config.project_dir) / "mine"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"not a run folder: it has no config\.yaml"):
        run(run_name="mine", resume_from_checkpoint="auto")


def test_the_one_command_takes_what_a_storage_has_and_begins_where_it_has_nothing(run: Run, tmp_path: Path) -> None:
    straight = run(run_name="straight")
    keys = {
        "run_name": "job",
        "resume_from_checkpoint": "auto",
        "sync_to_storage": True,
        "load_from_storage": True,
        "remote_path": str(tmp_path / "remote"),
    }
    first = run(stop_at_step=5, **keys)
    assert first.step == 5
    shutil.rmtree(first.run.path)
    again = run(**keys)
    assert (again.run.model / "model.safetensors").read_bytes() == (
        straight.run.model / "model.safetensors"
    ).read_bytes()
    assert "at step 5 of" in (again.run.path / "train.log").read_text()


def test_a_run_appears_with_all_that_a_resume_needs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[str]] = {}

    def looking(job: Any, folder: Any) -> None:
        seen["there"] = {path.name for path in folder.path.iterdir()}
        seen["beside"] = {path.name for path in folder.path.parent.iterdir()}
        raise KeyboardInterrupt

    straight = run(run_name="straight")
    with monkeypatch.context() as patch:
        patch.setattr(start, "describe", looking)
        with pytest.raises(KeyboardInterrupt, match="continue with"):
            run(run_name="early")
    assert {"config.yaml", "run.json", "labels.json", "tokenizer", "manifest.json", ".lock"} <= seen["there"]
    assert seen["beside"] == {"straight", "early"}
    folder = straight.run.path.parent / "early"
    again = train(load_config(folder / "config.yaml"), resume=RunFolder(folder))
    same_end(again, straight)


def test_input_that_turns_out_unusable_leaves_no_run(
    run: Run, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("no")

    monkeypatch.setattr(start, "build_training", refuse)
    with pytest.raises(UserError, match="no"):
        run(run_name="never")
    assert list(Path(configure().config.project_dir).iterdir()) == []


@pytest.mark.parametrize("done", ["removed", "renamed", "another"])
def test_a_folder_taken_away_fails_the_run_and_does_not_come_back(
    run: Run, monkeypatch: pytest.MonkeyPatch, done: str
) -> None:
    step, calls = train_module.optimizer_step, []

    def taking(training: Any, window: Any) -> Any:
        calls.append(1)
        folder = training.run.path
        if len(calls) == 9:
            shutil.rmtree(folder) if done == "removed" else folder.rename(folder.with_name("elsewhere"))
            if done == "another":
                shutil.copytree(folder.with_name("elsewhere"), folder)
        return step(training, window)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "optimizer_step", taking)
        with pytest.raises(RunError, match="removed or renamed while it trained") as failed:
            run(run_name="gone", save_strategy="step", steps_freq=4, use_tensorboard=True)
    path = Path(str(failed.value).partition("run '")[2].partition("'")[0])
    assert path.exists() == (done == "another")
    if done != "removed":
        assert not (path.with_name("elsewhere") / "summary.json").exists()
        moved = RunFolder(path.with_name("elsewhere"))
        assert train(load_config(moved.config), resume=moved).status == "completed"


@pytest.mark.parametrize("refused", ["append_text", "write_json", "save"])
def test_a_disk_that_fills_up_while_training_fails_the_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    target = {
        "append_text": "output.tracking.append_text",
        "write_json": "loop.events.write_json",
        "save": "loop.train.save_model",
    }
    monkeypatch.setattr(f"isotrain.albert_core.{target[refused]}", full)
    with pytest.raises(RunError, match=r"can't write somewhere \(No space left on device\)"):
        run()


def test_a_resume_makes_room_first_and_keeps_the_configuration_until_the_new_one_is_there(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(save_strategy="step", keep_last_n=9, keep_best_n=0, stop_at_step=16)
    assert len(list(first.run.checkpoints.iterdir())) == 4
    before = first.run.config.read_bytes()

    def full(path: Path, *_: Any) -> None:
        raise RunError(f"can't write {path} (No space left on device)")

    with monkeypatch.context() as patch:
        for name in ("write_text", "write_bytes", "write_json"):
            patch.setattr(start, name, full)
        with pytest.raises(RunError):
            run(resume=first.run, save_strategy="step", keep_last_n=1, keep_best_n=0)
    assert [path.name for path in first.run.checkpoints.iterdir()] == ["step-00000016"]
    assert first.run.config.read_bytes() == before
    again = run(resume=first.run, save_strategy="step", keep_last_n=1, keep_best_n=0)
    assert again.status == "completed"
    assert (again.run.path / "config-until-step-16.yaml").read_bytes() == before


def test_which_checkpoint_is_gone_on_from_is_said_of_one_start_alone(run: Run) -> None:
    first = run(run_name="mine", save_strategy="step", keep_last_n=9, stop_at_step=16, learning_rate=1e-3)
    older = {"resume_option": "path", "checkpoint_path": "step-00000008", "stop_at_step": 12}
    train(load_config(first.run.config, [f"{key}={value}" for key, value in older.items()]), resume=first.run)
    log = (first.run.path / "train.log").read_text()
    assert "step-00000008 at step 8" in log
    assert train(load_config(first.run.config), resume=first.run).status == "completed"
    again = (first.run.path / "train.log").read_text().removeprefix(log)
    assert "step-00000012 at step 12" in again


def test_a_relative_path_that_did_not_change_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configure: Configure
) -> None:
    write_dataset(tmp_path / "data", train=30, test=12)
    monkeypatch.chdir(tmp_path)
    keys = {"dataset_id": "data", "remote_path": "remote", "sync_to_storage": True, "run_name": "mine"}
    first = train(configure(stop_at_step=2, **keys))
    train(load_config(first.run.config), resume=first.run)
    train(configure(resume_from_checkpoint=True, **keys))
    assert "other values" not in (first.run.path / "train.log").read_text()


def test_what_killed_writers_left_is_swept_at_the_next_start_and_a_live_ones_is_not(run: Run) -> None:
    first = run(run_name="mine", stop_at_step=5)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    own, gone, alive = (f"-{pid}-" for pid in (os.getpid(), int(dead.stdout), os.getppid()))
    folders = (first.run.path, first.run.checkpoints, first.run.path.parent)
    for folder in folders:
        for pid in (gone, alive):
            (folder / temporary_name("config.yaml").replace(own, pid)).mkdir()
    run(resume=first.run)
    run(run_name="next", max_steps=1)
    for folder in folders:
        (left,) = folder.glob(".tmp-*")
        assert alive in left.name


def test_a_run_that_fails_ends_in_its_reason_alone(run: Run, configure: Configure) -> None:
    with pytest.raises(RunError, match="the loss is"):
        run(optim="sgd", learning_rate=1e30, run_name="nan")
    ended = json.loads((Path(configure().config.project_dir) / "nan" / "summary.json").read_text())
    assert ended["status"].startswith("failed: the loss is")


def test_a_completed_run_may_die_while_its_model_is_written_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(run_name="mine")

    def killed(*_: Any) -> None:
        raise RunError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(saved_model, "__version__", "another one, so that the file differs")
        patch.setattr(saved_model, "vouch", killed)
        with pytest.raises(RunError, match="killed"):
            run(resume=first.run)
    check_run(first.run.path)
    with pytest.raises(UserError, match="--resume"):
        check_run(first.run.path, [MODEL])
    assert run(resume=first.run).status == "completed"
    check_run(first.run.path, [MODEL])
