"""Data sets from local files: splits, columns, labels, and every way they can be wrong."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.albert_core.data.datasets import load_dataset

pytestmark = pytest.mark.core

TRAIN = "text,label\nred one,red\nblue one,blue\nred two,red\n"
TEST = "text,label\nblue three,blue\n"


def folder(tmp_path: Path, **files: str | bytes) -> Path:
    """A folder of files; `train_csv` becomes ``train.csv``."""
    tmp_path.mkdir(exist_ok=True)
    for name, content in files.items():
        path = tmp_path / name.replace("_", ".", 1)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def labelled(*labels: Any) -> str:
    return "text,label\n" + "".join(f"text {n},{label}\n" for n, label in enumerate(labels))


def refusal(dataset_id: str | Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(str(dataset_id), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rfc4180(raw: bytes) -> list[list[str]]:
    """Rows of a CSV file with CRLF rows, by the standard's grammar on bytes: a second reader to compare with."""
    field = re.compile(rb'(?:"((?:[^"]|"")*)"|([^,"\r\n]*))(,|\r\n)')
    rows: list[list[str]] = [[]]
    at = 0
    while at < len(raw):
        match = field.match(raw, at)
        assert match, f"byte {at} begins no field"
        cell = match[1].replace(b'""', b'"') if match[1] is not None else match[2]
        rows[-1].append(cell.decode())
        if match[3] != b",":
            rows.append([])
        at = match.end()
    return rows[:-1]


@pytest.mark.parametrize(
    ("first", "second"),
    [("1", '"1"'), ('"1"', "1"), ("true", '"true"'), ('"01"', "1"), ("1", '"+1"'), ("2", '"2"'), ("false", '"false"')],
)
def test_a_class_written_in_two_ways_is_refused(tmp_path: Path, first: str, second: str) -> None:
    others = ['"0"', '"2"', '"3"'] if first.strip('"').isdigit() or "+" in second else ['"a"', '"b"']
    rows = [f'{{"text": "text {n}", "label": {label}}}' for n, label in enumerate([first, second, *others])]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    said = refusal(tmp_path / "rows.jsonl", test_fraction=0.3)
    assert re.search(r"rows\.jsonl, line \d", said)
    assert "in one way" in said


def test_a_csv_goes_with_numbers_in_a_jsonl(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(labelled(0, 1, " 1"))
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 0}')
    data = load_dataset(str(tmp_path))
    assert data.train.labels == [0, 1, 1]
    assert data.test.labels == [1, 0]


@pytest.mark.shared
def test_banking77_loads_exactly(shared_data: Path) -> None:
    source = shared_data / "banking77"
    data = load_dataset(str(source))
    assert (len(data.train), len(data.test), len(data.label_names)) == (10_003, 3_080, 77)
    assert data.label_names == json.loads((source / "categories.json").read_text())
    for split, name in ((data.train, "train.csv"), (data.test, "test.csv")):
        expected = rfc4180((source / name).read_bytes())[1:]
        assert [
            [text, data.label_names[label]] for text, label in zip(split.texts, split.labels, strict=True)
        ] == expected
    # Facts of the data's own description.
    texts = data.train.texts + data.test.texts
    assert sum("\n" in text for text in data.train.texts) == 10
    assert sum("\n" in text for text in data.test.texts) == 3
    assert sum(text != text.strip() for text in texts) == 12
    train_counts = Counter(data.train.labels)
    assert (min(train_counts.values()), max(train_counts.values())) == (35, 187)
    assert set(Counter(data.test.labels).values()) == {40}


@pytest.mark.shared
def test_subj_loads_with_its_ids(shared_data: Path) -> None:
    data = load_dataset(str(shared_data / "subj"))
    assert data.label_names == ["0", "1"]
    assert Counter(data.train.labels) == {0: 4000, 1: 4000}
    assert Counter(data.test.labels) == {0: 1000, 1: 1000}
    assert data.train.texts[1].startswith("smart and alert , thirteen conversations")
    assert data.train.labels[:2] == [0, 1]


def test_names_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    data = load_dataset(str(folder(tmp_path, train_csv=TRAIN, test_csv=TEST)))
    assert data.label_names == ["blue", "red"]
    assert (data.train.labels, data.test.labels) == ([1, 0, 1], [0])
    assert data.test.texts == ["blue three"]


def test_categories_and_label_names_give_the_order(tmp_path: Path) -> None:
    source = folder(tmp_path, train_csv=TRAIN, test_csv=TEST, categories_json='["red", "blue"]')
    assert load_dataset(str(source)).train.labels == [0, 1, 0]
    given = load_dataset(str(source), label_names=["green", "blue", "red"])
    assert (given.train.labels, given.label_names) == ([2, 1, 2], ["green", "blue", "red"])


def test_formats_mix_and_validation_stands_in_for_test(tmp_path: Path) -> None:
    jsonl = '{"utterance": "x\\ny", "intent": "red"}\n{"utterance": "z", "intent": "blue"}\n'
    tsv = "utterance\tintent\nq, r\tblue\n"
    data = load_dataset(str(folder(tmp_path, train_jsonl=jsonl, validation_tsv=tsv)))
    assert (data.train.texts, data.test.texts) == (["x\ny", "z"], ["q, r"])


def test_test_wins_over_validation(tmp_path: Path) -> None:
    data = load_dataset(str(folder(tmp_path, train_csv=TRAIN, test_csv=TEST, dev_csv="text,label\nother,red\n")))
    assert data.test.texts == ["blue three"]


def test_columns_by_usual_name_and_by_request(tmp_path: Path) -> None:
    rows = "ID,Query,Category,note\n7,a,red,n1\n8,b,blue,n2\n"
    source = folder(tmp_path, train_csv=rows, test_csv=rows)
    assert load_dataset(str(source)).train.texts == ["a", "b"]
    assert load_dataset(str(source), text_column="note").train.texts == ["n1", "n2"]
    assert load_dataset(str(source), label_column="note").label_names == ["n1", "n2"]
    message = refusal(source, text_column="body")
    assert "'body'" in message
    assert "'ID', 'Query', 'Category', 'note'" in message
    assert "different columns" in refusal(source, text_column="note", label_column="note")


@pytest.mark.parametrize(
    ("header", "texts", "said"),
    [
        ("review,stars", ("review",), "the text is under 'review', the label is under 'stars'"),
        ("Sentiment,note,Content", ("Content",), "the text is under 'Content', the label is under 'Sentiment'"),
        ("title,content,class", ("content",), "the text is under 'content', the label is under 'class'"),
        ("question1,question2,is_duplicate", ("question1", "question2"), "the label is under 'is_duplicate'"),
        ("premise,hypothesis,class", ("premise", "hypothesis"), "the texts are under 'premise', 'hypothesis', "),
        ("sentence1,sentence2,score", ("sentence1", "sentence2"), "the label is under 'score'"),
        ("stars,label,text,review", ("text",), "the text is under 'text', the label is under 'label'"),
    ],
)
def test_usual_columns_are_found_and_said(tmp_path: Path, header: str, texts: tuple[str, ...], said: str) -> None:
    rows = "".join(",".join(f"{number % 2}" for _ in header.split(",")) + "\n" for number in range(4))
    data = load_dataset(str(folder(tmp_path, rows_csv=f"{header}\n{rows}") / "rows.csv"), test_fraction=0.5)
    assert data.text_columns == texts
    assert data.remarks[0].startswith(str(tmp_path / "rows.csv: "))
    assert said in data.remarks[0]


def test_how_numbers_become_ids_is_said(tmp_path: Path) -> None:
    for labels, said in (((1, 3, 5), "the labels 1, 3, 5 under 'label' have the ids 0 to 2"), ((0, 1, 2), "")):
        source = folder(tmp_path, train_csv=labelled(*labels), test_csv=labelled(*labels))
        assert [remark for remark in load_dataset(str(source)).remarks[1:] if said in remark] == (
            [str(source / "train.csv: ") + said] if said else []
        )


def test_label_text_names_numbers_of_any_range(tmp_path: Path) -> None:
    rows = "text,label,label_text\na,5,good\nb,1.0,bad\nc,5,good\n"
    data = load_dataset(str(folder(tmp_path, train_csv=rows, test_csv=rows)))
    assert (data.label_names, data.train.labels) == (["bad", "good"], [1, 0, 1])


def test_columns_missing_from_the_test_file_are_named(tmp_path: Path) -> None:
    message = refusal(folder(tmp_path, train_csv=TRAIN, test_csv="sentence,label\na,red\n"))
    assert "test.csv" in message
    assert "'sentence', 'label'" in message


@pytest.mark.parametrize(
    ("train", "test", "names", "ids"),
    [
        (labelled(0, 1, 2), labelled(2), ["0", "1", "2"], [0, 1, 2]),
        (labelled(" 1", "0 ", "+1"), labelled(0), ["0", "1"], [1, 0, 1]),
        (labelled("b ", " a"), labelled("a"), ["a", "b"], [1, 0]),
        (labelled("10", "9", "x"), labelled("x"), ["10", "9", "x"], [0, 1, 2]),
        (labelled("1.5", "x"), labelled("x"), ["1.5", "x"], [0, 1]),
        (labelled(5, 1, 3), labelled(3), ["1", "3", "5"], [2, 0, 1]),
        (labelled(1, -1), labelled(-1), ["-1", "1"], [1, 0]),
        (labelled(0, 2, 3), labelled(0), ["0", "2", "3"], [0, 1, 2]),
        (labelled("1.0", "0.0"), labelled("1"), ["0", "1"], [1, 0]),
        (labelled("True", "False"), labelled("True"), ["False", "True"], [1, 0]),
        (labelled("True", "False"), labelled("true"), ["false", "true"], [1, 0]),
    ],
)
def test_ids_and_names_are_told_apart(tmp_path: Path, train: str, test: str, names: list[str], ids: list[int]) -> None:
    data = load_dataset(str(folder(tmp_path, train_csv=train, test_csv=test)))
    assert (data.label_names, data.train.labels) == (names, ids)


def test_label_text_beside_ids_names_them(tmp_path: Path) -> None:
    rows = "text,label,label_text\na,1,late\nb,0,early\n"
    source = folder(tmp_path / "good", train_csv=rows, test_csv=rows)
    data = load_dataset(str(source))
    assert (data.label_names, data.train.labels) == (["early", "late"], [1, 0])
    assert load_dataset(str(source), label_column="label").label_names == ["0", "1"]
    contradiction = folder(tmp_path / "bad", train_csv=rows + "c,1,early\n", test_csv=rows)
    assert "line 4" in refusal(contradiction)


def test_ids_count_into_categories(tmp_path: Path) -> None:
    source = folder(tmp_path, train_csv=labelled(0, 2), test_csv=labelled(2), categories_json='["a", "b", "c"]')
    data = load_dataset(str(source))
    assert (data.label_names, data.train.labels) == (["a", "b", "c"], [0, 2])


def test_ratings_named_by_numbers_are_names_in_csv_and_ids_in_json(tmp_path: Path) -> None:
    stars = '["1", "2", "3"]'
    as_text = folder(tmp_path / "csv", train_csv=labelled(1, 2, 3), test_csv=labelled(3), categories_json=stars)
    assert load_dataset(str(as_text)).train.labels == [0, 1, 2]
    rows = '{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n'
    typed = folder(tmp_path / "json", train_jsonl=rows, test_jsonl=rows, categories_json=stars)
    assert load_dataset(str(typed)).train.labels == [1, 2]


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (labelled(0, 1), labelled(-1), ["test.csv, line 2", "negative"]),
        (labelled("0.0", "1.5"), labelled("0.0"), ["line 3", "fraction"]),
        (labelled("1e0", "2"), labelled("2"), ["line 2", "fraction"]),
        (labelled(1, 2), labelled(0), ["test.csv, line 2", "0", "without a training row"]),
        (labelled(0, 1), labelled(1, "0.5"), ["test.csv, line 3", "fraction"]),
        (labelled(0, 10**30), labelled(0), ["line 3", "an id too large"]),
        (labelled("a", ""), labelled("a"), ["line 3", "label", "empty"]),
        (labelled("a", "a"), labelled("a"), ["one label only", "'a'"]),
        (labelled(0, 0), labelled(0), ["one label only"]),
        (labelled("a", "b"), labelled("a", "c", "a", "d"), ["test.csv, line 3", "'c', 'd'", "without a training row"]),
        (labelled(0, 1), labelled(0, 2), ["test.csv, line 3", "2", "without a training row"]),
        ("text,label\na,x\n  ,y\n,x\nb,y\n", TEST, ["2 empty texts", "line 3, 4"]),
        (TRAIN, 'text,label\n"\n",red\n', ["test.csv", "1 empty texts", "line 2"]),
    ],
)
def test_wrong_labels_and_texts_are_refused_by_row(tmp_path: Path, train: str, test: str, said: list[str]) -> None:
    message = refusal(folder(tmp_path, train_csv=train, test_csv=test))
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"text": 5, "label": "x"}', "is 5 and no text"),
        ('{"text": null, "label": "x"}', "empty"),
        ('{"label": "x"}', "empty"),
        ('{"text": "a\\ud800b", "label": "x"}', "surrogate"),
        ('{"text": "a", "label": "\\udc00x"}', "surrogate"),
        ('{"text": "a", "label": 1.5}', "fraction"),
        ('{"text": "a", "label": NaN}', "NaN is no JSON number"),
        ('{"text": "a", "label": ["x"]}', "no name and no number; give one of them, or set task: multi_label"),
        ('{"text": "a"}', "label"),
    ],
)
def test_wrong_json_values_are_refused_by_line(tmp_path: Path, row: str, said: str) -> None:
    good = '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'
    message = refusal(folder(tmp_path, train_jsonl=good + row + "\n", test_jsonl=good))
    assert said in message
    assert re.search(r"(line |jsonl:)3\b", message)


@pytest.mark.parametrize(
    ("categories", "said"),
    [
        ("{", "json:1: truncated JSON"),
        ('{"a": 1}', "list of strings"),
        ("[1, 2]", "list of strings"),
        ('["red", "blue", "red"]', "twice: 'red'"),
        ('["red", "green"]', "train.csv, line 3"),
    ],
)
def test_wrong_categories_are_refused(tmp_path: Path, categories: str, said: str) -> None:
    assert said in refusal(folder(tmp_path, train_csv=TRAIN, test_csv=TEST, categories_json=categories))


def test_ids_beyond_the_names_are_refused(tmp_path: Path) -> None:
    source = folder(tmp_path, train_csv=labelled(0, 1, 2), test_csv=labelled(0))
    message = refusal(source, label_names=["a", "b"])
    assert "line 4" in message
    assert "0 to 1" in message


def test_one_boolean_in_two_spellings_is_one_class(tmp_path: Path) -> None:
    source = folder(tmp_path, train_csv=labelled("True", "true"), test_csv=labelled("True"))
    assert "has one label only ('true')" in refusal(source)


def test_booleans_beside_numbers_are_refused(tmp_path: Path) -> None:
    rows = "".join(f'{{"text": "a", "label": {label}}}\n' for label in ("true", "false", "0"))
    message = refusal(folder(tmp_path, train_jsonl=rows, test_jsonl=rows))
    assert "train.jsonl, line 3" in message
    assert "the labels are True, 0; write all as booleans, or all as numbers" in message


def test_a_split_with_another_column_is_told_both_names(tmp_path: Path) -> None:
    message = refusal(folder(tmp_path, train_csv=TRAIN, test_csv=TEST.replace("text", "review", 1)))
    assert "test.csv has no column 'text', which" in message
    assert "train.csv has; it has 'review', 'label': give both the same names" in message


@pytest.mark.parametrize("asked", [None, "sort"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_only_a_file_with_a_header_is_told_what_its_first_line_must_be(
    tmp_path: Path, suffix: str, asked: str | None
) -> None:
    row = {"text": "a", "colour": "red"}
    content = "text,colour\na,red\n" if suffix == "csv" else json.dumps(row)
    files = folder(tmp_path, **{f"{split}_{suffix}": content for split in ("train", "test")})
    message = refusal(files, label_column=asked)
    assert "it has 'text', 'colour'; set label_column to one of them" in message
    assert message.endswith("(the first line of a CSV file must name the columns)") is (suffix == "csv")


def test_folders_that_lack_or_double_a_split(tmp_path: Path) -> None:
    assert "train as .csv, .tsv, .jsonl, .json, .parquet" in refusal(folder(tmp_path / "a", other_csv=TRAIN))
    assert "it has nothing" in refusal(folder(tmp_path / "b"))
    assert "2 times" in refusal(folder(tmp_path / "c", train_csv=TRAIN, train_tsv=TRAIN, test_csv=TEST))
    assert "test_fraction" in refusal(folder(tmp_path / "d", train_csv=TRAIN))
    assert "drop test_fraction" in refusal(folder(tmp_path / "e", train_csv=TRAIN, test_csv=TEST), test_fraction=0.5)


def test_a_pipe_and_a_device_are_no_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "link.csv").symlink_to("/dev/zero")
    for name in ("pipe.csv", "link.csv"):
        message = refusal(tmp_path / name)
        assert "save the rows to a file" in message
        assert name in message


def test_a_single_file_needs_a_test_fraction(tmp_path: Path) -> None:
    rows = labelled(*["a", "b", "b", "c"] * 25, "rare")
    path = folder(tmp_path, all_csv=rows) / "all.csv"
    assert "test_fraction" in refusal(path)
    assert "between 0 and 1" in refusal(path, test_fraction=1.5)
    assert "larger share" in refusal(path, test_fraction=0.001)
    data = load_dataset(str(path), test_fraction=0.2, seed=1)
    names = data.label_names
    assert Counter(names[label] for label in data.test.labels) == {"a": 5, "b": 10, "c": 5}
    assert Counter(names[label] for label in data.train.labels) == {"a": 20, "b": 40, "c": 20, "rare": 1}
    everything = dict(line.rsplit(",", 1) for line in rows.splitlines()[1:])
    split = [row for part in (data.train, data.test) for row in zip(part.texts, part.labels, strict=True)]
    assert {text: names[label] for text, label in split} == everything
    assert len(split) == len(everything)
    assert load_dataset(str(path), test_fraction=0.2, seed=1) == data
    # However large the share, each label keeps a row to train on.
    assert len(set(load_dataset(str(path), test_fraction=0.99).train.labels)) == 4
    assert load_dataset(str(path), test_fraction=0.2, seed=2).test.texts != data.test.texts


def test_an_id_column_that_is_the_label_may_repeat_and_empty_cells_are_no_ids(tmp_path: Path) -> None:
    rows = "id,idx,text\n0,,a\n1,,b\n0,5,c\n1,6,d\n"
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text(rows)
    assert load_dataset(str(tmp_path), label_column="id").train.labels == [0, 1, 0, 1]
    (tmp_path / "test.csv").write_text(rows.replace("6", "5"))
    with pytest.raises(UserError, match=r"test\.csv, line 5: idx '5' occurs twice, first at line 4; give each row"):
        load_dataset(str(tmp_path), label_column="id")


def test_fingerprint_is_of_content_alone(tmp_path: Path) -> None:
    first = load_dataset(str(folder(tmp_path / "a", train_csv=TRAIN, test_csv=TEST)))
    elsewhere = load_dataset(str(folder(tmp_path / "b", train_tsv=TRAIN.replace(",", "\t"), test_csv=TEST)))
    assert first.fingerprint == elsewhere.fingerprint
    changes = {
        "text": (TRAIN.replace("red two", "red twO"), TEST),
        "space": (TRAIN.replace("red two", "red two "), TEST),
        "label": (TRAIN.replace("red two,red", "red two,blue"), TEST),
        "names": (TRAIN.replace(",red", ",rot"), TEST),
        "test": (TRAIN, TEST.replace("three", "four")),
        "moved": (TRAIN + "blue three,blue\n", TEST),
    }
    seen = {first.fingerprint}
    for name, (train, test) in changes.items():
        changed = load_dataset(str(folder(tmp_path / name, train_csv=train, test_csv=test)))
        assert changed.fingerprint not in seen, name
        seen.add(changed.fingerprint)


@pytest.mark.parametrize(
    "dataset_id", ["./nowhere", "../nowhere", "/nowhere/at/all", "~/nowhere-at-all", "nowhere.csv"]
)
def test_a_missing_path_is_said_to_be_one(dataset_id: str) -> None:
    message = refusal(dataset_id)
    assert "read as a local path" in message
    assert "Hub id" in message


@pytest.mark.parametrize("dataset_id", ["a/b/c/d", "with space", "", "org/", "http://host/x", "-dash"])
def test_a_name_that_is_nothing_says_what_is_allowed(dataset_id: str) -> None:
    message = refusal(dataset_id)
    assert "neither an existing path nor a Hub id" in message
