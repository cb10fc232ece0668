"""Several labels a text, and numbers, from every way of writing them; each defect named in one line with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from isotrain import UserError
from isotrain.albert_core.data.datasets import RawDataset, load_dataset
from isotrain.albert_core.data.label_kinds import NUMBERS, class_sets

SETS = class_sets(",", by_column=False)
FLAGS = class_sets(",", by_column=True)


def load(tmp_path: Path, suffix: str, train: str, test: str | None = None, **keys: Any) -> RawDataset:
    (tmp_path / f"train.{suffix}").write_text(train, encoding="utf-8")
    (tmp_path / f"test.{suffix}").write_text(test or train, encoding="utf-8")
    return load_dataset(str(tmp_path), **keys)


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps({"text": f"t{number}"} | row) + "\n" for number, row in enumerate(rows))


@pytest.mark.parametrize(
    ("suffix", "content", "kind"),
    [
        ("jsonl", lines({"labels": ["b", "a"]}, {"labels": []}, {"labels": ["b"]}), SETS),
        ("jsonl", lines({"label": "b, a,"}, {"label": " "}, {"label": "b"}), SETS),
        ("csv", 'text,labels\nt0,"b,a"\nt1,\nt2,b\n', SETS),
        ("csv", 'text,labels\nt0,"[""a"", ""b""]"\nt1,[]\nt2," [""b""]"\n', SETS),
        ("csv", "text,category\nt0,a|b\nt1,|\nt2,b\n", class_sets("|", by_column=False)),
        ("csv", "a,text,b\n1,t0,1\n0,t1,0\n 0,t2,1\n", FLAGS),
        ("jsonl", lines({"a": True, "b": 1}, {"a": False, "b": 0.0}, {"a": False, "b": 1}), FLAGS),
    ],
)
def test_every_way_of_writing_several_labels_says_the_same(
    tmp_path: Path, suffix: str, content: str, kind: Any
) -> None:
    columns = {"label_columns": ["a", "b"]} if kind is FLAGS else {}
    data = load(tmp_path, suffix, content, label_kind=kind, **columns)
    assert data.label_names == ["a", "b"]
    assert data.train.texts == ["t0", "t1", "t2"]
    assert data.train.labels == data.test.labels == [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]


def test_names_come_from_the_training_rows_or_from_categories(tmp_path: Path) -> None:
    ids = lines({"labels": [10, 9]}, {"labels": [2]})
    assert load(tmp_path, "jsonl", ids, label_kind=SETS).label_names == ["2", "9", "10"]
    (tmp_path / "categories.json").write_text('["no", "yes", "maybe"]')
    named = lines({"labels": ["yes", "maybe"]}, {"labels": []})
    data = load(tmp_path, "jsonl", named, label_kind=SETS)
    assert (data.label_names, data.train.labels) == (["no", "yes", "maybe"], [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    by_id = load(tmp_path, "jsonl", lines({"labels": [1, 2]}, {"labels": []}), label_kind=SETS)
    assert by_id.train.labels == data.train.labels


def test_the_hubs_lists_of_classes_have_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "labels": datasets.List(datasets.ClassLabel(names=["joy", "fear"]))}
    )
    split = datasets.Dataset.from_dict({"text": ["x", "y"], "labels": [[1], [0, 1]]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(train=split, test=split))
    data = load_dataset("org/feelings", label_kind=SETS)
    assert (data.label_names, data.train.labels) == (["joy", "fear"], [[0.0, 1.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (
            ("a", "b|c"),
            """line 3: the label 'b|c' is one name, because no row has the label_separator ','; set it to '|'""",
        ),
        (("a;b", "c"), "set it to ';'"),
        (("a|b", '"b,c"'), ""),
        (("a|b", '"[""c""]"'), ""),
        (("a", "b c"), ""),
    ],
)
def test_another_separator_than_the_configured_one_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cells: tuple[str, str], said: str
) -> None:
    load(tmp_path, "csv", "text,labels\n" + "".join(f"t,{cell}\n" for cell in cells), label_kind=SETS)
    assert said in caplog.text if said else not caplog.records


@pytest.mark.parametrize(
    ("suffix", "content", "columns", "names", "numbers"),
    [
        ("csv", "sentence1,sentence2,score\nx,y,3.8\nx,z, 4\n", {}, ["score"], [[3.8], [4.0]]),
        ("tsv", "text\tlabel\nx\t-1e-3\ny\t+.5\n", {}, ["label"], [[-1e-3], [0.5]]),
        ("jsonl", lines({"similarity_score": 1}, {"similarity_score": 2.5}), {}, ["similarity_score"], [[1.0], [2.5]]),
        ("csv", "joy,text,fear\n1,x,2\n3,y,4\n", {"label_columns": ["fear", "joy"]}, ["fear", "joy"], [[2, 1], [4, 3]]),
        ("jsonl", lines({"target": [1, 2]}, {"target": [0.5, 4]}), {}, ["target_1", "target_2"], [[1, 2], [0.5, 4]]),
    ],
)
def test_numbers_are_read(
    tmp_path: Path, suffix: str, content: str, columns: dict[str, Any], names: list[str], numbers: list[Any]
) -> None:
    data = load(tmp_path, suffix, content, label_kind=NUMBERS, **columns)
    assert (data.label_names, data.train.labels) == (names, numbers)
    assert (data.train.pairs is not None) == ("sentence2" in content)


def test_rows_without_a_number_are_left_out_if_asked(tmp_path: Path) -> None:
    content = "text,score\nx,1\ny,\nz,NA\nw,2\n"
    data = load(tmp_path, "csv", content, label_kind=NUMBERS, drop_missing=True)
    assert (data.train.texts, data.train.labels) == (["x", "w"], [[1.0], [2.0]])
    # A text without labels has none of them, and stays.
    data = load(tmp_path, "csv", "text,labels\nx,a\ny,\nz,NA\n", label_kind=SETS, drop_missing=True)
    assert (data.train.texts, data.train.labels) == (["x", "y"], [[1.0], [0.0]])


def test_a_share_of_the_rows_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text(lines(*({"score": number} for number in range(50))))
    data = load_dataset(str(path), label_kind=NUMBERS, test_fraction=0.2, seed=1)
    assert (len(data.train), len(data.test)) == (40, 10)
    assert sorted(value for (value,) in [*data.train.labels, *data.test.labels]) == list(range(50))


# What a single row is changed to, and what is said of it.
SET_FAULTS = {
    "missing": ({}, "the labels ('labels') are None"),
    "null": ({"labels": None}, "are None"),
    "a number": ({"labels": 3}, "are 3"),
    "an object": ({"labels": {"a": 1}}, "are {'a': 1}"),
    "nested": ({"labels": [["a"]]}, "are [['a']]"),
    "mixed in a list": ({"labels": ["a", 1]}, "are ['a', 1]"),
    "true": ({"labels": [True]}, "are [True]"),
    "a fraction": ({"labels": [1.5]}, "are [1.5]"),
    "mixed rows": ({"labels": "a"}, "'labels' is a JSON text here and a list before"),
    "an id twice": ({"labels": [0, 1, 0]}, "are [0, 1, 0], with an id twice"),
    "not JSON": ({"labels": "['a']"}, """the labels ('labels') are "['a']"; write a list such as ["a", "b"]"""),
    "marker": ({"labels": "NA"}, "the label 'NA' says that there is none"),
}
NUMBER_FAULTS = {
    "missing": ({}, "the target ('score') is empty"),
    "null": ({"score": None}, "is empty"),
    "empty": ({"score": " "}, "is empty; write a decimal number, such as 3.8, or leave such rows out by drop_missing"),
    "a word": ({"score": "good"}, "is 'good', no finite number"),
    "a comma": ({"score": "3,8"}, "is '3,8', no finite number"),
    "inf": ({"score": "inf"}, "is 'inf', no finite number"),
    "too large": ({"score": 1e39}, "is 1e+39, no finite number"),
    "true": ({"score": True}, "is True, no finite number"),
    "a list": ({"score": [1]}, "is [1], no finite number"),
    "mixed rows": ({"score": "1.5"}, "'score' is a JSON text here and a number before"),
    "NaN as text": (
        {"score": "NaN"},
        "the label 'NaN' says that there is none; correct it, or leave such rows out by drop_missing: true",
    ),
}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("kind", "right", "fault"),
    [
        *((SETS, {"labels": ["a"]}, fault) for fault in SET_FAULTS.values()),
        *((NUMBERS, {"score": 1.0}, fault) for fault in NUMBER_FAULTS.values()),
        (FLAGS, {"a": 1, "b": 0}, ({"a": 2, "b": 0}, "the label 'a' is 2; write 1")),
        (FLAGS, {"a": 1, "b": 0}, ({"a": 1}, "the label 'b' is None; write 1")),
        (FLAGS, {"a": 1, "b": 0}, ({"a": 1, "b": "0"}, "'b' is a JSON text here and a number before")),
        (SETS, {"labels": ["a"]}, ({"labels": []}, "")),
    ],
)
def test_each_defect_is_named_in_one_line(
    tmp_path: Path, kind: Any, right: dict[str, Any], fault: tuple[dict[str, Any], str], split: str
) -> None:
    changed, said = fault
    whole = lines(right, right | ({"score": 2.0} if kind is NUMBERS else {}), right)
    spoiled = lines(right, right | ({"score": 2.0} if kind is NUMBERS else {})) + lines(changed)
    keys: dict[str, Any] = {"label_kind": kind, "label_columns": ["a", "b"] if kind is FLAGS else []}
    files = {"train": whole, "test": whole} | {split: spoiled}
    if not said:
        load(tmp_path, "jsonl", files["train"], files["test"], **keys)
        return
    with pytest.raises(UserError) as caught:
        load(tmp_path, "jsonl", files["train"], files["test"], **keys)
    message = str(caught.value)
    assert f"{split}.jsonl, line 3" in message or f"{split}.jsonl:3" in message, message
    assert said in message, message
    assert "\n" not in message
    if kind is NUMBERS:
        assert "missing_markers" not in message, "no marker can be a class"


@pytest.mark.parametrize(
    ("kind", "suffix", "train", "test", "said"),
    [
        (
            SETS,
            "csv",
            "text,labels\nx,a\n",
            'text,labels\nx,a\nx,"a,c"\n',
            "test.csv, line 3: the label 'c' is unknown",
        ),
        (SETS, "csv", "text,labels\nx,\ny,\n", None, "train.csv has no label in any row under 'labels'"),
        (NUMBERS, "csv", "text,score\nx,1\ny,1\n", None, "has the same target in all rows (1.0) under 'score'"),
        (NUMBERS, "csv", "text,mark\nx,1\ny,2\n", None, "no label column (score,"),
        (NUMBERS, "jsonl", lines({"score": [1, 2]}, {"score": [3]}), None, "line 2: the targets ('score') are [3]"),
        (NUMBERS, "jsonl", lines({"score": []}, {"score": []}), None, "line 1: the targets ('score') are []"),
    ],
)
def test_labels_that_do_not_fit_each_other_are_refused(
    tmp_path: Path, kind: Any, suffix: str, train: str, test: str | None, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, suffix, train, test, label_kind=kind)
    assert said in str(caught.value)


def test_the_embedded_sets_have_varied_labels() -> None:
    topics = load_dataset("embedded:topics?train=154&test=77", label_kind=SETS)
    assert len(topics.label_names) == 13
    counts = [sum(row) for row in topics.train.labels]
    assert {0.0, 1.0, 2.0, 3.0} <= set(counts)
    assert all(0 < sum(column) < 154 for column in zip(*topics.train.labels, strict=True))
    scores = load_dataset("embedded:similarity?train=154&test=77", label_kind=NUMBERS)
    assert scores.train.pairs is not None
    given = [value for (value,) in scores.train.labels]
    assert (min(given), max(given)) == (0.0, 5.0)
    assert sum(0 < value < 5 for value in given) > 30
    again = load_dataset("embedded:similarity?train=154&test=77", label_kind=NUMBERS)
    assert again == scores
    with pytest.raises(UserError, match="is no name and no number"):
        load_dataset("embedded:topics")
    with pytest.raises(UserError, match="no finite number"):
        load_dataset("embedded:intents", label_kind=NUMBERS)
