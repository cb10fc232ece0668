"""What `isotrain train` shows at its end: the table of evaluations, the chart, and a collapse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from isotrain.albert_core.config_file import as_set
from support.command import Invoke
from support.small_job import write_dataset
from support.small_pairs import write_pairs

SMALL = {"model_name": "random:tiny", "dtype": "float32", "max_length": 32, "mlp_hidden_size": 16, "run_name": "r"}


def train(invoke: Invoke, config: str, **keys: object) -> tuple[int, str, str]:
    return invoke("train", config, *(f"--set={as_set(key, value)}" for key, value in (SMALL | keys).items()))


def rows(out: str) -> list[list[str]]:
    """The cells of every table row in what was printed."""
    lines = [line.replace("┃", "│") for line in out.splitlines()]
    return [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines if "│" in line]


def test_evaluations_are_a_table_and_a_chart(invoke: Invoke, tmp_path: Path) -> None:
    write_pairs(tmp_path / "data")
    keys = {"dataset_id": "./data", "freeze_encoder": True, "learning_rate": 1e-2}
    code, out, err = train(invoke, "mrpc", **keys)
    assert code == 0, err
    table = rows(out)
    header = ["train/loss", "epoch", "step", "eval/loss", "eval/accuracy", "eval/f1_macro", "eval/f1"]
    start = table.index(header)
    logged = [json.loads(line) for line in (tmp_path / "runs/r/metrics.jsonl").read_text().splitlines()]
    evaluated = [row for row in logged if "eval/loss" in row]
    assert len(evaluated) == 3
    for shown, row in zip(table[start + 1 :], evaluated, strict=False):
        values = [row["train/loss_since_evaluation"], row["epoch"], row["step"], *(row[name] for name in header[3:])]
        assert shown == [f"{value:.4f}" if isinstance(value, float) else str(value) for value in values]
    assert "* eval/accuracy   o eval/f1" in out
    assert "eval/accuracy, eval/f1: random:tiny (random weights)" in out.splitlines(), "the chart's title"
    live = [line for line in err.splitlines() if "train/loss" in line and "eval/loss" in line]
    assert len(live) == 3, "a line as each epoch ends"
    assert f"train/loss {evaluated[1]['train/loss_since_evaluation']:.4f}" in live[1]
    assert f"accuracy {evaluated[1]['eval/accuracy']:.4f}" in live[1]


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
    assert "--checkpoint best" in err
