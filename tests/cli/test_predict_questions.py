"""`isotrain predict` for questions, asked in every way there is, and what it and `isotrain train squad` refuse."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from isotrain.albert_core.data import squad_file, tabular
from support.command import Invoke, one_line_error
from support.data_files import write_rows
from support.small_questions import question, squad, write_questions

KEYS = {
    "model_name": "random:tiny",
    "dtype": "float32",
    "max_length": 48,
    "doc_stride": 12,
    "num_epochs": 1,
    "learning_rate": 1e-3,
    "threads": 1,
    "run_name": "reading",
}
ASKED = [
    ("Where does Anna keep it?", "Anna keeps the ledger in an attic. Boris keeps two keys in Room 12."),
    ("Where does Boris keep it?", 'Boris said: "I keep it,\nas ever, in the boat-house."'),
]


@pytest.fixture
def reading_run(invoke: Invoke, tmp_path: Path) -> Path:
    """A finished run on questions."""
    write_questions(tmp_path / "data", sentences=6)
    settings = [f"--set={key}={value}" for key, value in KEYS.items()]
    code, out, err = invoke("train", "squad", "--set=dataset_id=./data", *settings)
    assert code == 0, err
    assert "eval/exact_match" in out
    return tmp_path / "runs" / "reading"


def test_every_way_of_asking_gets_the_same_answers(invoke: Invoke, reading_run: Path, tmp_path: Path) -> None:
    asked = [option for q, c in ASKED for option in ("--question", q, "--context", c)]
    code, out, err = invoke("predict", reading_run, *asked, "--json")
    assert code == 0, err
    wanted = json.loads(out)["predictions"]
    assert [(item["question"], item["context"]) for item in wanted] == ASKED
    for item in wanted:
        assert item["context"][item["answer_start"] :].startswith(item["answer"])
    rows = [{"id": f"r{n}", "context": context, "question": asked} for n, (asked, context) in enumerate(ASKED)]
    with (tmp_path / "in.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    contexts = [(context, [{"id": f"r{n}", "question": asked}]) for n, (asked, context) in enumerate(ASKED)]
    (tmp_path / "in.json").write_text(json.dumps(squad(contexts)))
    write_rows("saved", tmp_path, rows, "in.saved")
    for source in ("in.csv", "in.jsonl", "in.json", "in.saved"):
        for target in (f"{source}.csv", f"{source}.jsonl", f"{source}.out.json"):
            code, _, err = invoke("predict", reading_run, "--file", source, "--out", target)
            assert code == 0, err
            text = (tmp_path / target).read_text()
            if target.endswith(".out.json"):
                assert json.loads(text) == {row["id"]: item["answer"] for row, item in zip(rows, wanted, strict=True)}
                continue
            if target.endswith(".jsonl"):
                read = [json.loads(line) for line in text.splitlines()]
            else:
                with (tmp_path / target).open(newline="") as file:
                    read = list(csv.DictReader(file))
            assert [row["answer"] for row in read] == [item["answer"] for item in wanted]
            assert [float(row["score"]) for row in read] == pytest.approx([item["score"] for item in wanted], abs=1e-6)


@pytest.mark.parametrize("source", ["in.json", "in.jsonl", "in.csv"])
def test_answers_do_not_depend_on_the_parts_that_a_file_is_read_in(
    invoke: Invoke, reading_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    rows = [{"id": f"q{n}", "question": ASKED[n % 2][0], "context": f"{ASKED[n % 2][1]} {n}."} for n in range(7)]
    contexts = [(row["context"], [{"id": row["id"], "question": row["question"]}]) for row in rows]
    (tmp_path / "in.json").write_text(json.dumps(squad(contexts)))
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "in.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    targets = ("a.csv", "a.jsonl", "a.out.json")
    for target in targets:
        assert invoke("predict", reading_run, "--file", source, "--out", target)[0] == 0
    monkeypatch.setattr(squad_file, "PART_ROWS", 2)
    monkeypatch.setattr(tabular, "PART_CHARACTERS", 100)
    for target in targets:
        code, _, err = invoke("predict", reading_run, "--file", source, "--out", f"parts-{target}")
        assert code == 0, err
        if target.endswith("out.json"):
            assert json.loads((tmp_path / target).read_text()) == json.loads((tmp_path / f"parts-{target}").read_text())
            continue
        whole, parts = (
            [json.loads(line) for line in path.read_text().splitlines()]
            if target.endswith(".jsonl")
            else list(csv.DictReader(path.open(newline="")))
            for path in (tmp_path / target, tmp_path / f"parts-{target}")
        )
        assert [row["id"] for row in whole] == [row["id"] for row in rows]
        scores = [[float(row.pop("score")) for row in found] for found in (whole, parts)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
        assert whole == parts


def test_the_evaluations_answers_come_again_from_a_moved_run(invoke: Invoke, reading_run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(reading_run, moved)
    dev = (tmp_path / "data" / "dev.json").read_text()
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "questions.json").write_text(dev)
    code, _, err = invoke("predict", moved, "--file", "questions.json", "--out", "answers.json")
    assert code == 0, err
    assert json.loads((tmp_path / "answers.json").read_text()) == json.loads((moved / "predictions.json").read_text())


def test_what_cannot_be_asked_is_refused(invoke: Invoke, reading_run: Path, tmp_path: Path) -> None:
    one_line_error(invoke("predict", reading_run, "Where?"), "give each question its context")
    one_line_error(invoke("predict", reading_run, "Where?", "--context", " "), "second text 1 of 1 is empty")
    one_line_error(invoke("predict", reading_run, "where " * 60, "--context", "There."), "doc_stride 12")
    (tmp_path / "one.csv").write_text("question\nWhere?\n")
    one_line_error(invoke("predict", reading_run, "--file", "one.csv"), "no column 'context'", "--pair-column")
    (tmp_path / "hole.csv").write_text("question,context\nWhere?,There.\nWho?,\n")
    one_line_error(invoke("predict", reading_run, "--file", "hole.csv"), "hole.csv, line 3", "context")
    one_line_error(invoke("predict", reading_run, "--file", "hole.csv", "--out", "a.txt"), ".jsonl")
    (tmp_path / "no_id.csv").write_text("question,context\nWhere?,There.\n")
    one_line_error(invoke("predict", reading_run, "--file", "no_id.csv", "--out", "a.json"), "no column id")
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("out", [(), ("--out", "a.csv"), ("--out", "a.jsonl"), ("--out", "a.json")])
def test_an_id_twice_is_refused_whatever_becomes_of_the_answers(
    invoke: Invoke, reading_run: Path, tmp_path: Path, out: tuple[str, ...]
) -> None:
    asked = [{"id": name, "question": "Where?"} for name in ("q1", "q2", "q1")]
    (tmp_path / "in.json").write_text(json.dumps(squad([("There.", asked[:2]), ("Here.", asked[2:])])))
    one_line_error(
        invoke("predict", reading_run, "--file", "in.json", *out),
        "in.json, question 3: id 'q1' occurs twice, first at question 1",
    )
    rows = [{"id": number, "question": "Where?", "context": "There."} for number in (1, 2, 2)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one_line_error(
        invoke("predict", reading_run, "--file", "in.jsonl", *out), "in.jsonl, line 3: id '2' occurs twice", "line 2"
    )
    assert not list(tmp_path.glob("a.*"))


def test_answers_by_id_need_an_id_in_every_row(invoke: Invoke, reading_run: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,question,context\n,Where?,There.\n,Where?,There.\n")
    one_line_error(invoke("predict", reading_run, "--file", "in.csv", "--out", "a.json"), "in.csv, line 2 has no id")
    code, _, err = invoke("predict", reading_run, "--file", "in.csv", "--out", "a.csv")
    assert code == 0, err


def test_unusable_training_data_ends_in_one_line(invoke: Invoke, tmp_path: Path) -> None:
    context = "Anna lives in Rome."
    asked = question(1, "Where?", context, "Rome")
    outside = asked | {"answers": [{"text": "Rome", "answer_start": 40}]}
    for paragraphs, said in (
        ([(context, [asked, asked])], "id 'q1' occurs twice"),
        ([(" ", [asked])], "the context is ' '"),
        ([(context, [outside])], "lies outside the context"),
        ([(context, [asked | {"answers": []}])], "has no answer"),
    ):
        (tmp_path / "train.json").write_text(json.dumps(squad(paragraphs)))
        settings = ("dataset_id=train.json", "test_fraction=0.5", "model_name=random:tiny")
        result = invoke("train", "squad", *(f"--set={setting}" for setting in settings))
        one_line_error(result, "train.json, question", said)
    assert not (tmp_path / "runs").exists()
