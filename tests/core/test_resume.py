"""Going on with a run in circumstances that are not the usual ones."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.albert_core.config.load import ResolvedConfig, load_config
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.train import TrainResult, train
from isotrain.albert_core.runs.folder import run_lock
from safetensors.torch import load_file
from support import forks
from support.small_job import WORDS, losses, metrics, write_dataset

Run = Callable[..., TrainResult]


def test_two_processes_never_train_one_run(run: Run) -> None:
    first = run(stop_at_step=3)
    said = rf"being trained by process {os.getpid()} on [\w.-]+; wait for it"
    with run_lock(first.run), pytest.raises(UserError, match=said):
        run(resume=first.run)
    assert run(resume=first.run).status == "completed"


def test_settings_changed_at_a_resume_count_and_are_named(run: Run) -> None:
    first = run(stop_at_step=6, run_name="a")
    again = run(resume=first.run, weight_decay=5.0)
    unchanged = run(run_name="b")
    weight = "hidden.weight"
    decayed = load_file(again.run.model / "model.safetensors")[weight].norm()
    assert decayed < 0.98 * load_file(unchanged.run.model / "model.safetensors")[weight].norm()
    assert "weight_decay: 0.0 -> 5.0" in (again.run.path / "train.log").read_text()
    assert load_config(again.run.config).config.weight_decay == 5.0
    (kept,) = again.run.path.glob("config-until-step-6.yaml")
    assert load_config(kept).config.weight_decay == 0.0


@pytest.mark.parametrize("change", [{"layout": "padded"}, {"dtype": "bfloat16", "strict_dtype": True}])
def test_what_changes_the_numbers_is_refused(run: Run, change: dict[str, Any]) -> None:
    first = run(stop_at_step=3)
    with pytest.raises(UserError, match=r"layout|dtype|cast_policy"):
        run(resume=first.run, **change)


def _rotated(path: Path) -> None:
    """Gives every row of a CSV the label of the row before."""
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    labels = [row[1] for row in rows]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [header, *([row[0], label] for row, label in zip(rows, labels[-1:] + labels[:-1], strict=True))]
        )


@pytest.mark.parametrize(("split", "key"), [("test", "test_data"), ("train", "train_data")])
def test_changed_data_is_refused_by_name(run: Run, tmp_path: Path, split: str, key: str) -> None:
    data = write_dataset(tmp_path / "own")
    first = run(dataset_id=str(data), stop_at_step=3)
    _rotated(data / f"{split}.csv")
    with pytest.raises(UserError, match=rf"foreign checkpoint .*{key} is .* there and .* here"):
        run(resume=first.run, dataset_id=str(data))


def test_names_of_labels_in_another_order_are_refused(run: Run, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "own")
    names = {name: label for label, name in enumerate(sorted(WORDS))}
    for path in data.glob("*.csv"):
        with path.open(newline="") as file:
            (text, label), *rows = csv.reader(file)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([(text, label), *((words, names[name]) for words, name in rows)])
    (data / "categories.json").write_text(json.dumps(list(names)))
    first = run(dataset_id=str(data), stop_at_step=3)
    (data / "categories.json").write_text(json.dumps(list(names)[::-1]))
    with pytest.raises(UserError, match="labels is"):
        run(resume=first.run, dataset_id=str(data))


def test_another_tokenizer_is_refused_although_it_numbers_this_data_alike(run: Run, tmp_path: Path) -> None:
    first = run(stop_at_step=3)
    definition = json.loads((first.run.tokenizer / "tokenizer.json").read_text())
    definition["added_tokens"].append(
        {"id": 29_999, "content": "[NEW]", "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(UserError, match=r"tokenizer is .* there and .* here"):
        run(resume=first.run, tokenizer_name=str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("change", [{"max_length": 24}, {"max_eval_samples": 10}])
def test_what_an_evaluation_depends_on_is_refused_by_name(run: Run, change: dict[str, Any]) -> None:
    first = run(stop_at_step=3)
    with pytest.raises(UserError, match=r"max_length is|test_data is"):
        run(resume=first.run, **change)


def test_resuming_without_a_name_never_takes_another_configurations_run(run: Run) -> None:
    mine = run(run_name="mine", stop_at_step=3)
    run(run_name="theirs", stop_at_step=3, learning_rate=0.5)
    assert run(resume_from_checkpoint=True).run.path == mine.run.path
    with pytest.raises(UserError, match="has this configuration"):
        run(resume_from_checkpoint=True, weight_decay=0.3)


def test_the_best_is_kept_although_saves_fall_on_other_steps(run: Run) -> None:
    result = run(save_strategy="step", steps_freq=5, val_steps_freq=4, keep_last_n=0, keep_best_n=1)
    (kept,) = result.run.checkpoints.glob("step-*")
    scored = {item["step"]: item["eval/loss"] for item in metrics(result) if "eval/loss" in item}
    assert int(kept.name.removeprefix("step-")) == min(scored, key=lambda step: scored[step])


def test_a_run_that_dies_while_finishing_can_be_finished(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from isotrain.albert_core.loop import train as module

    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    straight = run(run_name="straight")
    with monkeypatch.context() as patch:
        patch.setattr(module, "summarize", die)
        with pytest.raises(KeyboardInterrupt):
            run(run_name="cut", save_optim=False)
    folder = straight.run.path.parent / "cut"
    again = run(run_name="cut", save_optim=False, resume_from_checkpoint=True)
    assert again.run.path == folder
    assert json.loads(again.run.summary.read_text())["status"] == "completed"
    assert losses(again) == losses(straight)
    # Finished and stripped of its optimizer state, it can still be opened, and has nothing left to do.
    assert run(resume=again.run, save_optim=False).step == straight.step


def test_a_run_gone_on_with_does_not_predict_with_its_earlier_model(run: Run) -> None:
    first = run(num_epochs=1)
    assert load_predictor(first.run).predict(["lost card"])
    second = run(resume=first.run, num_epochs=3, stop_at_step=20)
    assert second.status == "stopped"
    with pytest.raises(UserError, match="no finished model"):
        load_predictor(second.run)
    assert load_predictor(second.run, checkpoint="last").predict(["lost card"])


def test_a_schedule_that_ended_before_the_checkpoint_is_refused(run: Run) -> None:
    first = run(stop_at_step=9)
    with pytest.raises(UserError, match="ends at step 5"):
        run(resume=first.run, max_steps=5)


def test_a_failed_run_says_so(run: Run, configure: Callable[..., ResolvedConfig]) -> None:
    with pytest.raises(RuntimeError):
        run(optim="sgd", learning_rate=1e30, run_name="nan")
    summary = json.loads((Path(configure().config.project_dir) / "nan" / "summary.json").read_text())
    assert re.match(r"failed: the loss is (inf|nan)", summary["status"])


def test_storage_of_another_run_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    where = {"sync_to_storage": True, "remote_path": str(tmp_path / "remote"), "max_steps": 2}
    run(**where)
    with pytest.raises(UserError, match="checkpoints of an earlier run"):
        run(run_name="second", **where)
    with pytest.raises(UserError, match="resume_from_checkpoint: true too"):
        run(load_from_storage=True, remote_path=str(tmp_path / "remote"))


def test_relative_paths_mean_the_same_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configure: Callable[..., ResolvedConfig]
) -> None:
    write_dataset(tmp_path / "here" / "data", train=30, test=12)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    first = train(configure(dataset_id="data", stop_at_step=2))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train(load_config(first.run.config), resume=first.run).status == "completed"


def test_the_mode_follows_the_metric_unless_it_is_set() -> None:
    def mode(*sets: str) -> str:
        return load_config(None, sets).config.best.mode

    assert mode() == "min"
    assert mode("checkpoint_metric=eval/accuracy") == "max"
    assert mode("checkpoint_metric=eval/f1_macro", "checkpoint_metric_mode=min") == "min"
    assert mode("checkpoint_metric=eval/loss", "checkpoint_metric_mode=max") == "max"


@pytest.mark.parametrize(("backend", "then"), [("tt", "cpu"), ("cpu", "tt-emulated")])
def test_a_backend_of_the_command_line_sets_no_other_key(tmp_path: Path, backend: str, then: str) -> None:
    (tmp_path / "config.yaml").write_text(load_config("quickstart", options={"backend": backend}).to_yaml())
    again = load_config(tmp_path / "config.yaml", [f"backend={then}"])
    assert again.config.backend_name == then


def test_a_log_that_nobody_reads_any_more_ends_no_run(configure: Callable[..., ResolvedConfig], tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(configure(num_epochs=6, run_name="piped").to_yaml())
    process = forks.Popen(
        ["-c", "from isotrain.cli.main import main; main()", "train", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    process.stderr.readline()
    process.stderr.close()
    assert process.stdout is not None
    process.stdout.read()
    assert process.wait(timeout=120) == 0
    folder = Path(configure().config.project_dir) / "piped"
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"
    assert re.search(r"INFO +6 +72 ", (folder / "train.log").read_text()), "the last evaluation"


def test_a_run_killed_before_its_first_checkpoint_begins_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from isotrain.albert_core.loop import train as module

    straight = run(run_name="straight")
    step, calls = module.optimizer_step, []

    def dying(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "optimizer_step", dying)
        with pytest.raises(KeyboardInterrupt):
            run(run_name="cut")
    again = run(run_name="cut", resume_from_checkpoint=True)
    assert losses(again) == losses(straight)
    assert "begins again at its first step" in (again.run.path / "train.log").read_text()


def test_a_finished_run_that_kept_no_checkpoint_is_not_trained_again(run: Run) -> None:
    first = run(keep_last_n=0, keep_best_n=0)
    before = (first.run.model / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="no checkpoint"):
        run(resume=first.run, keep_last_n=0, keep_best_n=0)
    assert (first.run.model / "model.safetensors").read_bytes() == before


def test_the_best_weights_alone_are_gone_on_from_and_it_is_said_loudly(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    keys: dict[str, Any] = {"save_optim": False, "save_strategy": "step", "val_steps_freq": 4, "keep_last_n": 9}
    # The highest loss counts as best, so that the best is not the last.
    keys |= {"checkpoint_metric_mode": "max", "run_name": "mine"}
    first = run(stop_at_step=12, **keys)
    assert first.best["step"] == 4
    chosen = first.run.checkpoints / "step-00000004"
    assert not (chosen / "optimizer.safetensors").exists()
    weights = load_file(chosen / "model.safetensors")
    capfd.readouterr()
    again = run(resume_from_checkpoint=True, resume_option="best", **keys)
    said = f"RESUMED WITH WEIGHTS ALONE: checkpoint {str(chosen)!r} has no optimizer state"
    assert said in capfd.readouterr().err
    assert said in (again.run.path / "train.log").read_text()
    assert (again.status, again.step) == ("completed", 24)
    # Step 5 is that of these weights on the fifth batch, with an optimizer that knows of no step before.
    straight = run(**keys | {"run_name": "straight", "steps_freq": 1})
    assert load_file(straight.run.checkpoints / "step-00000004" / "model.safetensors").keys() == weights.keys()
    before, after = dict(losses(straight)), dict(losses(again))
    assert after[8] != pytest.approx(sum(before[step] for step in range(5, 9)) / 4, rel=1e-6)
    assert after[8] == pytest.approx(sum(before[step] for step in range(5, 9)) / 4, rel=0.2)


def test_the_last_checkpoint_is_never_gone_on_from_without_its_optimizer(run: Run) -> None:
    keys: dict[str, Any] = {"save_optim": False, "run_name": "mine"}
    done = run(num_epochs=1, **keys)
    with pytest.raises(UserError, match=r"no optimizer state .*resume_option: best goes on from"):
        run(resume=done.run, num_epochs=2, **keys)
    assert run(resume=done.run, num_epochs=2, resume_option="best", **keys).step == 24
