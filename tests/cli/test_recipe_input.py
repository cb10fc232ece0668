"""The recipes' wrong input: each ends in one line and exit code 2, with nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command import Invoke, one_line_error

PAIRS = "sentence1,sentence2,label\na one,a two,1\nb one,b two,0\n"
TEXTS = "text,label\nred one,0\nblue one,1\n"
ANSWERS = "text,response\nwhere is it,On its way {name}\nhow much,It costs 5 euros\n"


@pytest.mark.parametrize(
    ("recipe", "train", "test", "said"),
    [
        ("mrpc", PAIRS, None, ["no validation file", "evaluation_split"]),
        ("mrpc", "sentence1,sentence2,label\na,,1\nb,c,0\n", PAIRS, ["unpaired", "train.csv", "line 2"]),
        ("mrpc", PAIRS, "sentence1,label\na,1\n", ["dev.csv", "sentence2"]),
        ("mrpc", TEXTS.replace("text,label", "text,gold"), TEXTS, ["no label column"]),
        ("mrpc", PAIRS + "c,d,2\n", PAIRS, ["num_labels is 2", "has 3"]),
        ("subj", "text,label\na,0\nb,0\n", TEXTS, ["one label only"]),
        ("subj", TEXTS, "text,label\na,2\n", ["without a training row"]),
        ("subj", "body,label\na,0\n", TEXTS, ["no text column", "'body'"]),
        ("subj", "text,label\nna\u00efve,0\n", TEXTS, ["not UTF-8", "line 2"]),
        ("mrpc", "idx," + PAIRS.replace("\na", "\n7,a").replace("\nb", "\n7,b"), PAIRS, ["line 3: idx '7'", "line 2"]),
        (
            "subj",
            TEXTS,
            "ID,text,label\nx,red one,0\nx,blue one,1\n",
            ["test.csv, line 3: ID 'x' occurs twice", "line 2"],
        ),
        ("csv_intents", ANSWERS, ANSWERS.replace("costs", "is"), ["without a training row"]),
        ("csv_intents", ANSWERS.replace("On its way {name}", "It costs 7 EUROS!"), ANSWERS, ["one label only"]),
        ("csv_intents", "text,response\na,?!\nb,x\n", ANSWERS, ["nothing is left of the label '?!'"]),
    ],
)
def test_unusable_data_ends_in_one_line(
    invoke: Invoke, tmp_path: Path, recipe: str, train: str, test: str | None, said: list[str]
) -> None:
    (tmp_path / "data").mkdir()
    # One of the files is in the encoding that spreadsheets like best; where it is plain ASCII that changes nothing.
    (tmp_path / "data" / "train.csv").write_bytes(train.encode("cp1252"))
    if test is not None:
        (tmp_path / "data" / ("dev.csv" if recipe == "mrpc" else "test.csv")).write_text(test)
    result = invoke("train", recipe, "--set", "dataset_id=./data", "--set", "model_name=random:tiny")
    one_line_error(result, *said)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("chart=[eval/f1_micro]", ["eval/f1_micro", "eval/accuracy"]),
        ("evaluation_split=train", ["evaluation_split", "train"]),
        ("task=translation", ["task", "translation"]),
        ("text_column=label", ["both 'label'"]),
    ],
)
def test_unusable_settings_end_in_one_line(invoke: Invoke, tmp_path: Path, override: str, said: list[str]) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "data" / f"{name}.csv").write_text(PAIRS)
    keys = ("dataset_id=./data", "model_name=random:tiny", override)
    one_line_error(invoke("train", "mrpc", *(f"--set={key}" for key in keys)), *said)
    assert not Path("runs").exists()
