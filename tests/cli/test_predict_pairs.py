"""`isotrain predict` for runs on pairs: from the command line, from CSV and JSONL, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from support.command import Invoke, one_line_error
from support.small_pairs import write_pairs

KEYS = {"model_name": "random:tiny", "dtype": "float32", "max_length": 32, "mlp_hidden_size": 8, "num_epochs": 1}


@pytest.fixture
def pair_run(invoke: Invoke, tmp_path: Path) -> Path:
    """A finished run on pairs, frozen."""
    write_pairs(tmp_path / "data")
    settings = [f"--set={key}={value}" for key, value in KEYS.items()]
    code, out, err = invoke("train", "--set=dataset_id=./data", "--set=run_name=pairs", *settings, "quickstart")
    assert code == 0, err
    assert "eval/f1 " in out
    return tmp_path / "runs" / "pairs"


def test_pairs_from_the_command_line_and_from_files_agree(invoke: Invoke, pair_run: Path, tmp_path: Path) -> None:
    pairs = [("the card was lost", "I heard a loan is open"), ("this fee, looks wrong", 'I heard "this fee"')]
    code, out, err = invoke(
        "predict", pair_run, pairs[0][0], pairs[1][0], "--pair", pairs[0][1], "--pair", pairs[1][1], "--json"
    )
    assert code == 0, err
    wanted = json.loads(out)["predictions"]
    assert [(item["text"], item["text_pair"]) for item in wanted] == pairs
    rows = [{"id": n, "sentence2": second, "sentence1": first, "label": "?"} for n, (first, second) in enumerate(pairs)]
    with (tmp_path / "in.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source in ("in.csv", "in.jsonl"):
        for target in (f"{source}.out.csv", f"{source}.out.jsonl"):
            code, _, err = invoke("predict", pair_run, "--csv", source, "--out", target)
            assert code == 0, err
            with (tmp_path / target).open(newline="") as file:
                read = list(csv.DictReader(file)) if target.endswith("csv") else [json.loads(line) for line in file]
            assert [(row["sentence1"], row["sentence2"], row["label"]) for row in read] == [(*p, "?") for p in pairs]
            assert [row["predicted_label"] for row in read] == [item["label"] for item in wanted]
            assert [float(row["probability"]) for row in read] == pytest.approx(
                [item["probability"] for item in wanted], abs=1e-6
            )
    assert wanted[0]["probability"] != wanted[1]["probability"]


def test_the_second_text_counts(invoke: Invoke, pair_run: Path) -> None:
    answers = [
        json.loads(invoke("predict", pair_run, "the card was lost", "--pair", second, "--json")[1])["predictions"][0]
        for second in ("I heard the card is open", "I heard a loan was closed")
    ]
    assert answers[0]["probability"] != answers[1]["probability"]


def test_what_is_no_pair_is_refused(invoke: Invoke, pair_run: Path, tmp_path: Path) -> None:
    one_line_error(invoke("predict", pair_run, "lonely"), "trained on pairs")
    one_line_error(invoke("predict", pair_run, "a", "b", "--pair", "c"), "2 texts and 1 second text;")
    one_line_error(invoke("predict", pair_run, "a", "--pair", " "), "empty")
    (tmp_path / "one.csv").write_text("sentence1\nx\n")
    one_line_error(invoke("predict", pair_run, "--csv", "one.csv"), "one.csv")
    (tmp_path / "half.csv").write_text("sentence1,sentence2\nx,y\nx,\n")
    one_line_error(invoke("predict", pair_run, "--csv", "half.csv"), "half.csv, line 3", "sentence2")
    (tmp_path / "twice.csv").write_text("idx,sentence1,sentence2\n3,x,y\n4,x,z\n3,y,z\n")
    one_line_error(
        invoke("predict", pair_run, "--csv", "twice.csv", "--out", "out.csv"),
        "twice.csv, line 4: idx '3' occurs twice, first at line 2",
    )
    (tmp_path / "latin.csv").write_bytes("sentence1,sentence2\nx,é\n".encode("latin-1"))
    one_line_error(invoke("predict", pair_run, "--csv", "latin.csv"), "not UTF-8", "line 2")
    one_line_error(invoke("predict", pair_run, "--csv", "half.csv", "--out", "out.txt"), ".jsonl")
    one_line_error(invoke("predict", pair_run, "--csv", "half.csv", "--pair", "x"), "--pair-column")
