"""`isotrain predict` for several labels, numbers, and questions without an answer: on the command line and in files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import isotrain
import pytest
import torch
from support.command import Invoke, one_line_error
from support.small_tasks import write_scores, write_topics, write_unanswerable

KEYS = {
    "model_name": "random:tiny",
    "dtype": "float32",
    "max_length": 48,
    "num_epochs": 2,
    "threads": 1,
    "run_name": "run",
    "dataset_id": "./data",
}


def trained(invoke: Invoke, recipe: str, **keys: Any) -> str:
    settings = [f"--set={key}={value}" for key, value in (KEYS | keys).items()]
    code, out, err = invoke("train", recipe, *settings)
    assert code == 0, err
    return out


def predicted(invoke: Invoke, file: str, tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of every form of answers to `file`, by the answers' suffix."""
    found = {}
    for suffix in ("csv", "jsonl"):
        code, _, err = invoke("predict", "runs/run", "--file", file, "--out", f"out.{suffix}")
        assert code == 0, err
        with (tmp_path / f"out.{suffix}").open(newline="") as opened:
            found[suffix] = list(csv.DictReader(opened)) if suffix == "csv" else [json.loads(line) for line in opened]
    return found


def test_all_labels_above_the_threshold_are_given(invoke: Invoke, tmp_path: Path) -> None:
    write_topics(tmp_path / "data")
    assert "eval/f1_micro" in trained(invoke, "topics", learning_rate=1e-2, label_threshold=0.3)
    code, out, err = invoke("predict", "runs/run", "hello card chip pin", "hello loan rate", "--json")
    assert code == 0, err
    answers = json.loads(out)["predictions"]
    rows = predicted(invoke, "data/test.jsonl", tmp_path)
    answers += rows["jsonl"]
    assert len({tuple(item.get("predicted_labels", item["labels"])) for item in answers}) > 2
    # What is written to a CSV file is read again as labels.
    labels = [json.loads(row["predicted_labels"]) for row in rows["csv"]]
    assert labels == [row["predicted_labels"] for row in rows["jsonl"]]
    assert [row["labels"] for row in rows["csv"]] == [json.dumps(row["labels"]) for row in rows["jsonl"]]
    code, table, err = invoke("predict", "runs/run", "hello card chip pin")
    assert code == 0, err
    assert ", ".join(answers[0]["labels"]) in table


def test_all_labels_of_pairs_are_evaluated_predicted_and_exported(invoke: Invoke, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    write_topics(tmp_path / "data", pairs=True)
    trained(invoke, "topics", learning_rate=1e-2, label_threshold=0.3)
    rows = predicted(invoke, "data/test.jsonl", tmp_path)["jsonl"]
    assert len({tuple(row["predicted_labels"]) for row in rows}) > 2
    exact = [set(row["predicted_labels"]) == set(row["labels"]) for row in rows]
    evaluated = json.loads((tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()[-1])
    assert evaluated["eval/accuracy"] == pytest.approx(sum(exact) / len(rows))
    assert invoke("export", "runs/run", "--format", "transformers", "--out", "exported")[0] == 0
    isotrain.register_models()
    model, tokenizer = (
        kind.from_pretrained("exported") for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    for row in rows[:8]:
        with torch.no_grad():
            logits = model(**tokenizer(row["text"], row["text_pair"], return_tensors="pt")).logits[0]
        above = (logits.sigmoid() > 0.3).nonzero().flatten().tolist()
        assert {model.config.id2label[number] for number in above} == set(row["predicted_labels"])
    seconds = {}
    for second in (rows[0]["text_pair"], "again"):
        code, out, err = invoke("predict", "runs/run", rows[0]["text"], "--pair", second, "--json")
        assert code == 0, err
        (seconds[second],) = json.loads(out)["predictions"]
    assert seconds[rows[0]["text_pair"]]["labels"] == rows[0]["predicted_labels"]
    assert seconds[rows[0]["text_pair"]]["probabilities"] != seconds["again"]["probabilities"]
    one_line_error(invoke("predict", "runs/run", "lonely"), "trained on pairs")


def test_numbers_are_given_for_pairs(invoke: Invoke, tmp_path: Path) -> None:
    write_scores(tmp_path / "data")
    assert "eval/pearsonr" in trained(invoke, "similarity", learning_rate=1e-2)
    code, out, err = invoke("predict", "runs/run", "lost card", "--pair", "card lost", "--json")
    assert code == 0, err
    (answer,) = json.loads(out)["predictions"]
    assert list(answer) == ["text", "text_pair", "score"]
    rows = predicted(invoke, "data/test.jsonl", tmp_path)
    assert [float(row["predicted_score"]) for row in rows["csv"]] == pytest.approx(
        [row["predicted_score"] for row in rows["jsonl"]], abs=1e-6
    )
    one_line_error(invoke("predict", "runs/run", "lonely"), "trained on pairs")


def test_no_answer_is_an_empty_one_with_its_score(invoke: Invoke, tmp_path: Path) -> None:
    write_unanswerable(tmp_path / "data", sentences=6)
    shown = trained(invoke, "squad2", doc_stride=12, learning_rate=1e-3, null_threshold=-100)
    assert "eval/NoAns_f1" in shown
    asked = ("--question", "Where?", "--context", "Anna keeps the ledger in an attic.")
    code, out, err = invoke("predict", "runs/run", *asked, "--json")
    assert code == 0, err
    (answer,) = json.loads(out)["predictions"]
    assert (answer["answer"], answer["answer_start"]) == ("", 0)
    assert 0 < answer["score"] <= 1
    rows = predicted(invoke, "data/dev-v2.0.json", tmp_path)
    for found in rows.values():
        assert {row["answer"] for row in found} == {""}
        assert {str(row["is_impossible"]).lower() for row in found} == {"true", "false"}
    assert invoke("predict", "runs/run", "--file", "data/dev-v2.0.json", "--out", "out.json")[0] == 0
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(
        (tmp_path / "runs/run/predictions.json").read_text()
    )


@pytest.mark.parametrize(
    ("recipe", "row", "said"),
    [
        ("topics", {"text": "x", "labels": 3}, "the labels ('labels') are 3"),
        ("topics", {"text": "x"}, "the labels ('labels') are None"),
        ("similarity", {"sentence1": "x", "sentence2": "y", "score": "high"}, "is 'high', no finite number"),
        ("similarity", {"sentence1": "x", "sentence2": "y"}, "the target ('score') is empty"),
        ("similarity", {"sentence1": "x", "score": 1}, "empty texts"),
    ],
)
def test_unusable_rows_end_in_one_line(
    invoke: Invoke, tmp_path: Path, recipe: str, row: dict[str, Any], said: str
) -> None:
    (write_topics if recipe == "topics" else write_scores)(tmp_path / "data", train=8, test=4)
    with (tmp_path / "data" / "train.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    settings = [f"--set={key}={value}" for key, value in KEYS.items()]
    one_line_error(invoke("train", recipe, *settings), "train.jsonl", "line 9", said)
    assert not (tmp_path / "runs").exists()


def test_the_examples_train_without_a_network(invoke: Invoke, tmp_path: Path) -> None:
    for recipe, name in (("topics", "topics"), ("similarity", "similarity")):
        data = f"embedded:{name}?train=154&test=77"
        out = trained(invoke, recipe, dataset_id=data, num_epochs=1, run_name=recipe)
        assert "next:" in out
        assert (tmp_path / "runs" / recipe / "labels.json").is_file()
