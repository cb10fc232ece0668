"""`isotrain predict` on files of any size and any columns: nothing of the input is lost, nothing is held for long."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.albert_core.inference import predict
from isotrain.albert_core.inference.prediction_files import answer_file, free_names, read_inputs
from isotrain.albert_core.runs.folder import open_run
from support import forks
from support.command import Invoke, one_line_error
from support.data_files import FORMATS, write_rows

WORDS = ("card", "loan", "fee", "lost", "rate", "open")


def read_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [json.loads(line) for line in file] if path.suffix == ".jsonl" else list(csv.DictReader(file))


def many(count: int) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "text": f"{WORDS[n % 6]} {WORDS[n // 6 % 6]} " + "x " * (n % 7)} for n in range(count)]


def test_files_of_several_parts_give_each_row_its_own_answer(
    invoke: Invoke, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = many(8400)
    write_rows("csv", tmp_path, rows, "in")
    write_rows("jsonl", tmp_path, rows, "in")
    answers = {}
    for source, target in (("in.csv", "a.csv"), ("in.jsonl", "b.jsonl"), ("in.csv", "c.json")):
        code, out, err = invoke("predict", small_run, "--csv", source, "--out", target)
        assert (code, err) == (0, ""), err
        assert "8,400 predictions" in out
    # The head, too, takes as many rows at a time as fit: here of six labels, ten.
    monkeypatch.setattr(predict, "HEAD_OUTPUTS", 60)
    predictor = predict.load_predictor(open_run(small_run))
    assert predictor.num_outputs == 6
    texts = [row["text"] for row in rows[8000:8300]]
    wanted = {row["id"]: item for row, item in zip(rows[8000:8300], predictor.predict(texts), strict=True)}
    for name in ("a.csv", "b.jsonl"):
        found = read_rows(tmp_path / name)
        assert [{key: row[key] for key in ("id", "text")} for row in found] == rows
        answers = {row["id"]: row for row in found}
        for key, item in wanted.items():
            assert answers[key]["label"] == item.label
            assert float(answers[key]["probability"]) == pytest.approx(item.probability, abs=1e-6)
    by_id = json.loads((tmp_path / "c.json").read_text())
    assert by_id == {row["id"]: row["label"] for row in read_rows(tmp_path / "a.csv")}


def test_no_part_of_the_head_is_larger_than_allowed(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predict.load_predictor(open_run(small_run))
    texts = [row["text"] for row in many(35)]
    whole = predictor.predict(texts)
    monkeypatch.setattr(predict, "HEAD_OUTPUTS", 60)
    sizes: list[int] = []
    predictor.model.register_forward_hook(lambda *called: sizes.append(called[2].numel()))
    parts = predictor.predict(texts)
    assert sizes == [60, 60, 60, 30]
    assert [item.label_id for item in parts] == [item.label_id for item in whole]
    assert [item.probability for item in parts] == pytest.approx([item.probability for item in whole], abs=1e-6)


TAKEN = {
    "label": "mine",
    "probability": "0.10",
    "label_id": "x",
    "predicted_label": "yours",
    "input_label": "ours",
    "device": "left",
}


@pytest.mark.parametrize("target", ["out.csv", "out.jsonl"])
@pytest.mark.parametrize("source", ["csv", "tsv", "jsonl"])
def test_every_value_of_the_input_is_kept(
    invoke: Invoke, small_run: Path, tmp_path: Path, source: str, target: str
) -> None:
    rows = [TAKEN | {"text": f"lost card {n}"} for n in range(3)]
    write_rows(source, tmp_path, rows, "in")
    code, out, err = invoke("predict", small_run, "--csv", f"in.{source}", "--out", target)
    assert code == 0, err
    found = read_rows(tmp_path / target)
    assert [{key: row[key] for key in rows[0]} for row in found] == rows
    labels = json.loads((small_run / "labels.json").read_text())
    for row in found:
        assert set(row) == {*rows[0], "predicted_label_2", "predicted_label_id", "predicted_probability"}
        assert labels[int(row["predicted_label_id"])] == row["predicted_label_2"]
    for used in ("predicted_label_2", "predicted_label_id", "predicted_probability"):
        assert repr(used) in out
    # What was written is asked again.
    again = f"again{Path(target).suffix}"
    code, _, err = invoke("predict", small_run, "--csv", target, "--out", again)
    assert code == 0, err
    assert [{key: row[key] for key in found[0]} for row in read_rows(tmp_path / again)] == found


def test_every_format_gets_the_same_answers(invoke: Invoke, small_run: Path, tmp_path: Path) -> None:
    answers = []
    for number, kind in enumerate([*FORMATS, "saved"]):
        path = write_rows(kind, tmp_path, many(4))
        code, _, err = invoke("predict", small_run, "--csv", path, "--out", f"{number}.jsonl")
        assert (code, err) == (0, ""), kind
        answers.append(read_rows(tmp_path / f"{number}.jsonl"))
    assert [row["id"] for row in answers[0]] == ["r0", "r1", "r2", "r3"]
    assert all(found == answers[0] for found in answers)


def test_a_folder_of_several_splits_is_refused_by_their_names(invoke: Invoke, small_run: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_rows("saved", tmp_path / "kept", many(2), split)
    (tmp_path / "kept" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    said = ("kept has the splits 'train', 'test'; give the folder of one, such as kept/test",)
    one_line_error(invoke("predict", small_run, "--csv", "kept"), *said)
    code, _, err = invoke("predict", small_run, "--csv", "kept/test")
    assert code == 0, err


def test_numbers_of_the_input_keep_all_their_digits(invoke: Invoke, small_run: Path, tmp_path: Path) -> None:
    write_rows("jsonl", tmp_path, [{"text": "lost card", "weight": 0.1234567891234, "n": 12, "none": None}], "in")
    assert invoke("predict", small_run, "--csv", "in.jsonl", "--out", "out.csv")[0] == 0
    (row,) = read_rows(tmp_path / "out.csv")
    assert (row["weight"], row["n"], row["none"]) == ("0.1234567891234", "12", "null")


def test_free_names_are_free_of_each_other_too() -> None:
    assert free_names(["label", "id"], ["text"]) == {"label": "label", "id": "id"}
    assert free_names(["label", "predicted_label"], ["label"]) == {
        "label": "predicted_label_2",
        "predicted_label": "predicted_label",
    }


def test_an_id_called_device_stays_beside_the_device(small_run: Path, tmp_path: Path) -> None:
    run = open_run(small_run)
    write_rows("csv", tmp_path, [{"id": name, "text": "lost card"} for name in ("a", "_device", "device")], "in")
    inputs = read_inputs(run, tmp_path / "in.csv", None, None, by_id=True)
    predictor = predict.load_predictor(run)
    with answer_file(tmp_path / "out.json", inputs, "tt-emulated") as answers:
        for part in inputs.parts():
            answers.add(part, predictor.predict(*inputs.texts(part)))
    assert answers.names["device"] == "__device"
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found) == ["__device", "a", "_device", "device"]
    assert found["__device"] == "tt-emulated"
    assert len({found["a"], found["_device"], found["device"]}) == 1


def test_a_file_that_changes_meanwhile_is_refused(small_run: Path, tmp_path: Path) -> None:
    run = open_run(small_run)
    write_rows("csv", tmp_path, many(3), "in")
    inputs = read_inputs(run, tmp_path / "in.csv", None, None)
    write_rows("csv", tmp_path, many(4), "in")
    with pytest.raises(UserError, match="changed while it was read"):
        next(inputs.parts())


@pytest.mark.parametrize("width", [1, 10, 20, 40])
def test_a_narrow_terminal_gets_lines(
    invoke: Invoke, small_run: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = invoke("predict", small_run, "lost my card", "what\nrate")
    assert code == 0, err
    label = json.loads(invoke("predict", small_run, "lost my card", "--json")[1])["predictions"][0]["label"]
    lines = out.splitlines()
    assert "text: lost my card" in lines
    assert f"label: {label}" in lines
    assert "text: what\\x0arate" in lines
    assert sum(line.startswith("probability: 0.") for line in lines) == 2


def test_many_rows_are_printed_some_at_a_time(invoke: Invoke, small_run: Path, tmp_path: Path) -> None:
    rows = many(250)
    write_rows("csv", tmp_path, rows, "in")
    code, out, err = invoke("predict", small_run, "--csv", "in.csv")
    assert code == 0, err
    assert out.count("probability") == 3
    assert out.count("card card x") == sum(row["text"].startswith("card card x") for row in rows)
    printed = json.loads(invoke("predict", small_run, "--csv", "in.csv", "--json")[1])
    assert [item["text"] for item in printed["predictions"]] == [row["text"] for row in rows]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_leaves_nothing_half_written(small_run: Path, tmp_path: Path, number: int) -> None:
    rows = many(60_000)
    write_rows("csv", tmp_path, rows, "in")
    (tmp_path / "out").mkdir()
    code = "from isotrain.cli.main import main; main()"
    command = ["-c", code, "predict", str(small_run), "--csv", "in.csv", "--out", "out/a.csv"]
    process = forks.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in (tmp_path / "out").iterdir()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no row was written in two minutes"
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert not list((tmp_path / "out").iterdir())


def test_what_a_killed_process_left_is_swept(invoke: Invoke, small_run: Path, tmp_path: Path) -> None:
    import platform

    left = tmp_path / f".tmp-{platform.node() or 'host'}-999999999-0123abcd-a.csv"
    left.write_text("half")
    write_rows("csv", tmp_path, many(2), "in")
    assert invoke("predict", small_run, "--csv", "in.csv", "--out", "a.csv")[0] == 0
    assert not left.exists()
    one_line_error(invoke("predict", small_run, "--csv", "in.csv", "--out", "absent/a.csv"), "absent")
