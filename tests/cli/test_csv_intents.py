"""The recipe from texts to whole answers, as a user runs it on a CSV."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

from isotrain.albert_core.config.label_rules import RULES, normalise
from isotrain.albert_core.data.datasets import load_dataset
from support.command import Invoke, one_line_error

SMALL = ["freeze_encoder=true", "max_length=32", "num_epochs=30", "learning_rate=1e-2"]
ANSWERS = {
    "card": ["Hi {name}, it takes 5 days.", "hi [NAME], it takes 7 days.", "Hi {name}, it takes 5 days."],
    "loan": ["Rates: https://bank.example/1", "rates: https://bank.example/27", "Rates: https://bank.example/1"],
    "login": ["Reset it in the app.", "Reset it in the app.", "RESET it  in the app"],
}


def write_tickets(path: Path, count: int = 120) -> None:
    names = list(ANSWERS)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["ticket", "message", "answer"])
        for number in range(count):
            name = names[number % 3]
            writer.writerow(
                [number, f"{name} {'please help asap now'[: number % 20]} {name}", ANSWERS[name][number // 3 % 3]]
            )


def test_predictions_give_the_answer_as_it_was_written_most_often(invoke: Invoke, tmp_path: Path) -> None:
    write_tickets(tmp_path / "tickets.csv")
    keys = ["dataset_id=tickets.csv", "test_fraction=0.25", "text_column=message", "label_column=answer", "run_name=t"]
    code, _, err = invoke("train", "csv_intents", *(f"--set={key}" for key in (*keys, *SMALL)))
    assert code == 0, err
    run = tmp_path / "runs" / "t"
    rules = list(RULES)
    saved = json.loads((run / "responses.json").read_text())
    assert [normalise(text, rules) for text in saved] == json.loads((run / "labels.json").read_text())
    (tmp_path / "tickets.csv").unlink()
    shutil.move(run, tmp_path / "elsewhere")
    (tmp_path / "new.csv").write_text("message\ncard now card\nlogin asap login\n")
    code, _, err = invoke("predict", tmp_path / "elsewhere", "--csv", "new.csv", "--out", "answers.csv")
    assert code == 0, err
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["response"] for row in rows] == [ANSWERS["card"][0], ANSWERS["login"][0]]
    shown = json.loads(invoke("predict", tmp_path / "elsewhere", "loan please loan", "--json")[1])["predictions"][0]
    assert (shown["response"], shown["label"]) == (ANSWERS["loan"][0], "rates <url>")


def test_the_packaged_recipe_runs_as_it_stands(invoke: Invoke, tmp_path: Path) -> None:
    keys = [key for key in SMALL if not key.startswith("num_epochs")]
    sizes = ["dataset_id=embedded:responses?train=154&test=77", "num_epochs=1", "run_name=e"]
    code, _, err = invoke("train", "csv_intents", *(f"--set={key}" for key in (*keys, *sizes)))
    assert code == 0, err
    responses = load_dataset("embedded:responses?train=154&test=77", label_rules=list(RULES)).responses
    answer = json.loads(invoke("predict", tmp_path / "runs" / "e", "Where is my card?", "--json")[1])["predictions"][0]
    assert responses is not None
    assert answer["response"] == responses[answer["label_id"]]


def test_a_rule_that_is_none_is_refused(invoke: Invoke) -> None:
    one_line_error(invoke("train", "csv_intents", "--set", "label_rules=[lower]"), "'lower'", "white_space")
