"""What `isotrain train` shows at its end: the table of evaluations, the chart, and a collapse."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from isotrain.albert_core.config.load import as_set
from isotrain.albert_core.output import progress
from isotrain.albert_core.output.progress import fits_terminal
from isotrain.albert_core.terminal.invocation import program
from rich.console import Console
from support.command import Invoke
from support.small_job import write_dataset
from support.small_pairs import write_pairs

SMALL = {"model_name": "random:tiny", "dtype": "float32", "max_length": 32, "mlp_hidden_size": 16, "run_name": "r"}


def train(invoke: Invoke, config: str, **keys: object) -> tuple[int, str, str]:
    return invoke("train", config, *(f"--set={as_set(key, value)}" for key, value in (SMALL | keys).items()))


def test_evaluations_are_one_table_and_a_chart(invoke: Invoke, tmp_path: Path) -> None:
    write_pairs(tmp_path / "data")
    keys = {"dataset_id": "./data", "freeze_encoder": True, "learning_rate": 1e-2}
    code, out, err = train(invoke, "mrpc", **keys)
    assert code == 0, err
    logged = [json.loads(line) for line in (tmp_path / "runs/r/metrics.jsonl").read_text().splitlines()]
    evaluated = [row for row in logged if "eval/loss" in row]
    assert len(evaluated) == 3
    lines = err.splitlines()
    title = lines.index("evaluations of random:tiny (random weights)")
    assert lines[title + 1].split() == [
        "epoch", "step", "of", str(evaluated[-1]["step"]), "train/loss", "eval/loss", "accuracy", "macro-F1", "F1"
    ]  # fmt: skip
    metrics = ["train/loss_since_evaluation", "eval/loss", "eval/accuracy", "eval/f1_macro", "eval/f1"]
    rows = [line for line in lines[title + 2 :] if line.split()[0].isdigit()]
    for line, row in zip(rows, evaluated, strict=True):
        assert line.split() == [str(row["epoch"]), str(row["step"]), *(f"{row[name]:.4f}" for name in metrics)]
        assert len(line) == len(lines[title + 1]), "columns are aligned"
        assert line not in out, "nothing is printed twice"
    assert "* eval/accuracy   o eval/f1" in out
    assert "eval/accuracy, eval/f1: random:tiny (random weights)" in out.splitlines(), "the chart's title"


@pytest.mark.parametrize("mark", ["", "- "], ids=["a word", "a dash"])
def test_a_finished_run_says_what_to_do_next_and_each_command_works(invoke: Invoke, tmp_path: Path, mark: str) -> None:
    write_pairs(tmp_path / "data")
    texts = tmp_path / "data" / "dev.csv"
    header, *rows = texts.read_text(encoding="utf-8").splitlines()
    texts.write_text("\n".join([header, *(mark + row for row in rows)]), encoding="utf-8")
    code, out, err = train(invoke, "mrpc", dataset_id="./data", freeze_encoder=True)
    assert code == 0, err
    _, _, after = out.partition("\nnext:\n")
    commands = [shlex.split(line.strip().removeprefix(program())) for line in after.splitlines()]
    assert [words[0] for words in commands] == ["predict", "bench", "parity", "report"]
    assert "--pair" in commands[0]
    code, out, err = invoke(*commands[0])
    assert code == 0, err
    assert "random:tiny (random weights)" in out
    assert invoke(*commands[1], "--dry-run")[0] == 0
    code, _, err = invoke(*commands[3][:-1])
    assert code == 0, err
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(("stop", "code"), [(True, 1), (False, 0)])
def test_a_collapse_is_said_loudly(invoke: Invoke, tmp_path: Path, stop: bool, code: int) -> None:
    write_dataset(tmp_path / "data")
    keys = {
        "dataset_id": "./data",
        "num_labels": 6,
        "batch_size": 8,
        "learning_rate": 0.3,
        "num_epochs": 4,
        "stop_on_collapse": stop,
    }
    ended, out, err = train(invoke, "subj", **keys)
    assert ended == code, err
    assert "COLLAPSED by step" in err
    assert ("stopped by stop_on_collapse" in out) == stop
    assert "COLLAPSED: " in out
    [pasted] = re.findall("`([^`]+)`", err)
    assert "--checkpoint best" in pasted
    assert invoke(*shlex.split(pasted)[1:])[0] == 0


@pytest.mark.parametrize("line", ["x" * 40, "x" * 41])
def test_a_table_that_a_terminal_would_break_is_no_table(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr(progress, "terminal", lambda: Console(width=40, force_terminal=True))
    assert fits_terminal(line) == (len(line) == 40)
    monkeypatch.setattr(progress, "terminal", lambda: Console(width=40, force_terminal=False))
    assert fits_terminal(line), "a file has room"
