"""`isotrain train` on labels that are missing, and on so few rows that labels are lost."""

from __future__ import annotations

from pathlib import Path

from support.command import Invoke, one_line_error

SMALL = ("model_name=random:tiny", "dtype=float32", "dataset_id=rows.csv", "test_fraction=0.3", "num_epochs=1")


def write(folder: Path, *labels: str) -> None:
    rows = [f"{number},{label}\n" for number, label in enumerate(labels)]
    (folder / "rows.csv").write_text("text,label\n" + "".join(rows), encoding="utf-8")


def train(invoke: Invoke, *sets: str) -> tuple[int, str, str]:
    return invoke("train", "quickstart", *(f"--set={item}" for item in (*SMALL, *sets)))


def test_a_missing_label_is_refused_or_left_out(invoke: Invoke, tmp_path: Path) -> None:
    write(tmp_path, *("0", "1") * 10, "NA")
    one_line_error(train(invoke), "rows.csv, line 22", "drop_missing: true")
    code, _, err = train(invoke, "drop_missing=yes")
    assert code == 0, err
    assert "left out of its 21 rows: 1 without a label or a text" in err


def test_labels_that_max_train_samples_leaves_without_a_row_are_named(invoke: Invoke, tmp_path: Path) -> None:
    write(tmp_path, *("red", "green", "blue") * 6)
    code, _, err = train(invoke, "max_train_samples=2")
    assert code == 0, err
    assert "max_train_samples: 2 leaves 1 label without a training row, of 3" in err


def test_what_was_found_by_looking_at_the_data_is_said(invoke: Invoke, tmp_path: Path) -> None:
    rows = [f"{number};{1 + number % 5}\n" for number in range(20)]
    (tmp_path / "rows.csv").write_text("review;stars\n" + "".join(rows), encoding="utf-8")
    code, _, err = train(invoke, "max_steps=1", "project_dir=runs", "run_name=r")
    assert code == 0, err
    for said in (
        "the fields are separated by semicolons",
        "the text is under 'review', the label is under 'stars'",
        "the labels 1, 2, 3, 4, 5 under 'stars' have the ids 0 to 4",
    ):
        assert f"rows.csv: {said}" in err
        assert f"rows.csv: {said}" in (tmp_path / "runs" / "r" / "train.log").read_text()
