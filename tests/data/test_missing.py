"""Labels that say there is none, and labels that are probably not what they look like: never a class without a word."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.albert_core.config.keys import MISSING_MARKERS
from isotrain.albert_core.data.datasets import load_dataset


def csv_of(folder: Path, *labels: str, texts: tuple[str, ...] = ()) -> Path:
    """A table of these labels, each text its row's number unless given."""
    path = folder / "rows.csv"
    rows = [f"{text},{label}\n" for text, label in zip(texts or map(str, range(len(labels))), labels, strict=True)]
    path.write_text("text,label\n" + "".join(rows), encoding="utf-8")
    return path


def load(path: Path, **options: Any) -> Any:
    return load_dataset(str(path), test_fraction=0.4, **options)


def warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


@pytest.mark.parametrize("marker", [*MISSING_MARKERS, "nan", "n/a", "none", "NULL", " NaN "])
@pytest.mark.parametrize("others", [("0", "1", "0", "1"), ("a", "b", "a", "b")])
def test_a_marker_is_no_class(tmp_path: Path, marker: str, others: tuple[str, ...]) -> None:
    path = csv_of(tmp_path, *others, marker)
    with pytest.raises(UserError, match=r"rows\.csv, line 6: the label .* missing_markers: \[\]"):
        load(path)
    assert load(path, drop_missing=True).label_names == sorted(set(others))


def test_rows_without_a_label_or_a_text_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = csv_of(tmp_path, "0", "1", "NA", "", "0", "1", "1", texts=("a", "b", "c", "d", "e", " ", "f"))
    data = load(path, drop_missing=True)
    assert sorted([*data.train.texts, *data.test.texts]) == ["a", "b", "e", "f"]
    assert data.label_names == ["0", "1"]
    assert "left out of its 7 rows: 3 without a label or a text (the first is line 4)" in warnings(caplog)


@pytest.mark.parametrize("row", [("x", ""), (" ", "0")])
def test_an_empty_label_or_text_names_the_key_that_leaves_it_out(tmp_path: Path, row: tuple[str, str]) -> None:
    path = csv_of(tmp_path, "0", "1", "0", "1", row[1], texts=("a", "b", "c", "d", row[0]))
    with pytest.raises(UserError, match=r"line 6.* drop_missing: true"):
        load(path)
    assert len(load(path, drop_missing=True).label_names) == 2


def test_markers_may_be_named_or_be_classes(tmp_path: Path) -> None:
    path = csv_of(tmp_path, "low", "none", "low", "none", "?")
    assert load(path, missing_markers=[]).label_names == ["?", "low", "none"]
    with pytest.raises(UserError, match="line 6"):
        load(path, missing_markers=["?"])
    assert load(path, missing_markers=["?"], drop_missing=True).label_names == ["low", "none"]
    with pytest.raises(UserError, match="no row with a text"):
        load(csv_of(tmp_path, "NA", "NA"), drop_missing=True)


def test_a_name_that_is_known_to_be_a_class_is_one(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("text,label\na,none\nb,some\n")
    (tmp_path / "categories.json").write_text(json.dumps(["some", "none"]))
    assert load_dataset(str(tmp_path)).train.labels == [1, 0]


def test_json_null_is_missing_and_json_truth_is_a_label(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": str(n), "label": n % 2 == 0} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load(path).label_names == ["false", "true"]
    path.write_text(path.read_text() + '{"text": "x", "label": null}\n{"text": null, "label": true}\n')
    with pytest.raises(UserError, match="empty"):
        load(path)
    data = load(path, drop_missing=True)
    assert len(data.train) + len(data.test) == 6


def test_a_text_that_is_a_marker_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(csv_of(tmp_path, "0", "1", "0", "1", texts=("a", "nan", "NaN", "b")))
    assert "line 3, as a text: 'nan' (2 rows in all)" in warnings(caplog)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("0", "1", "0", "1", "two"), "line 6: the label 'two' is no number"),
        (("0", "1", "0", "1", "1x"), "line 6: the label '1x' is no number"),
        (("Yes", "no", "yes", "no"), "line 4: the labels 'Yes', 'yes' differ in letter case alone"),
        (("yes", "no", "yes", "no"), ""),
        (("0", "1", "0", "1"), ""),
    ],
)
def test_labels_that_are_probably_a_slip_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, labels: tuple[str, ...], said: str
) -> None:
    load(csv_of(tmp_path, *labels))
    assert said in warnings(caplog) if said else not warnings(caplog)
