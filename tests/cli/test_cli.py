"""The command line as a user meets it: exit codes, one-line errors, and what it prints."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from isotrain.backends.accelerators import DEVICES
from isotrain.cli.main import main
from isotrain.conformance import doctor
from support.command import Invoke, one_line_error


@pytest.mark.core
def test_help_teaches(invoke: Invoke) -> None:
    code, out, _ = invoke("--help")
    assert code == 0
    for command in ("train", "predict", "bench", "doctor", "config"):
        assert command in out
    assert "Examples" in invoke("train", "--help")[1]


def test_version(invoke: Invoke) -> None:
    from isotrain import __version__

    assert invoke("--version") == (0, f"isotrain {__version__}\n", "")


@pytest.mark.usefixtures("forked_children")
def test_doctor_lists_every_backend(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = invoke("doctor", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["schema"] == "isotrain.doctor/1"
    # A process examines each backend: once is enough.
    monkeypatch.setattr(
        doctor, "examine", lambda *_, **__: [doctor.Report.model_validate(one) for one in document["backends"]]
    )
    code, out, _ = invoke("doctor", "-v")
    assert code == 0
    for word in ("cpu", "cuda", "xla", "tpu", "tt", "PASS", "matmul/float32: ok", "linear/float32/grad: ok", "fix: "):
        assert word in out
    reports = {item["backend"]: item for item in document["backends"]}
    assert reports["cpu"]["status"] == "PASS"
    for report in reports.values():
        assert report["status"] == "PASS" or (report["reason"] and report["fix"])
    never_run = {"cuda", "tpu", "tt", "tt-tpu", *DEVICES}
    assert never_run <= {name for name, report in reports.items() if report["untested"]}
    assert out.count("not run by its authors") >= len(never_run)


@pytest.mark.core
def test_config_shows_values_and_sources(invoke: Invoke) -> None:
    code, out, _ = invoke("config", "banking77", "--set", "seed=5", "--backend", "cpu")
    assert code == 0
    rows = {line.partition(":")[0]: line for line in out.splitlines()}
    assert rows["seed"] == "seed: 5  # --set"
    assert "# banking77.yaml:" in rows["learning_rate"]
    assert rows["warmup_ratio"].endswith("# default")
    assert json.loads(invoke("config", "banking77", "--json")[1])["sources"]["eval_batch_size"] == "default"


def test_what_config_shows_can_be_run(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    sets = ("--set", "wandb_tags=[a, 'b: # c']", "--set", f"run_name={'long' * 30}")
    (tmp_path / "again.yaml").write_text(invoke("config", "banking77", *sets)[1])
    shown = [json.loads(invoke("config", *given, "--json")[1]) for given in (["banking77", *sets], ["again.yaml"])]
    assert shown[0]["values"] == shown[1]["values"]


@pytest.mark.core
def test_config_lists_every_key(invoke: Invoke) -> None:
    from isotrain.albert_core.config.schema import TrainConfig

    out = invoke("config", "--keys")[1]
    assert all(key in out for key in TrainConfig.flat_keys())
    document = json.loads(invoke("config", "--keys", "--json")[1])
    assert document["schema"] == "isotrain.config-keys/1"
    assert {row["key"]: row["default"] for row in document["keys"]}["learning_rate"] == "0.001"


@pytest.mark.core
def test_predict_texts_and_json(invoke: Invoke, small_run: Path) -> None:
    code, out, _ = invoke("predict", small_run, "lost my card", "--json")
    assert code == 0
    answer = json.loads(out)
    assert "random weights" in answer["model"]
    assert answer["predictions"][0]["label"] in json.loads((small_run / "labels.json").read_text())
    assert 1 / 6 < answer["predictions"][0]["probability"] <= 1
    assert "lost my card" in invoke("predict", small_run, "lost my card")[1]


@pytest.mark.core
def test_predict_csv_keeps_rows_and_columns(invoke: Invoke, small_run: Path, tmp_path: Path) -> None:
    rows = [["a", "lost card"], ["b", 'said "hello",\nthen left'], ["c", "loan rate"]]
    with (tmp_path / "in.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, lineterminator="\r\n").writerows([["id", "text"], *rows])
    code, _, err = invoke("predict", small_run, "--csv", "in.csv", "--out", "out.csv")
    assert code == 0, err
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [[row["id"], row["text"]] for row in written] == rows
    assert all(0 < float(row["probability"]) <= 1 and row["label"] for row in written)
    one_line_error(invoke("predict", small_run, "--csv", "in.csv", "--out", "out.csv"), "exists already")


def test_predict_from_a_checkpoint_gives_the_finished_models_answer(invoke: Invoke, small_run: Path) -> None:
    finished = json.loads(invoke("predict", small_run, "lost card", "--json")[1])
    last = json.loads(invoke("predict", small_run, "lost card", "--json", "--checkpoint", "last")[1])
    assert finished == last


def test_predict_refuses_what_it_cannot_use(invoke: Invoke, small_run: Path, tmp_path: Path) -> None:
    one_line_error(invoke("predict", small_run), "either texts or --csv")
    one_line_error(invoke("predict", small_run, "  "), "empty")
    one_line_error(invoke("predict", small_run, os.fsdecode(b"caf\xe9")), "not UTF-8")
    one_line_error(invoke("predict", tmp_path / "absent", "x"), "no folder")
    one_line_error(invoke("predict", tmp_path, "x"), "not a run folder")
    one_line_error(invoke("predict", small_run, "--csv", "absent.csv"), "absent.csv")
    (tmp_path / "wrong.csv").write_text("a,b\n1,2\n")
    one_line_error(invoke("predict", small_run, "--csv", "wrong.csv", "--out", "o.csv"), "'a', 'b'", "text_column")
    assert not (tmp_path / "o.csv").exists()
    model = small_run / "model" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:100])
    one_line_error(invoke("predict", small_run, "x"), "model.safetensors", "damaged")


def test_stop_prints_the_command_that_goes_on(invoke: Invoke, small_run: Path, tmp_path: Path) -> None:
    code, out, _ = invoke("train", "small.yaml", "--set", "run_name=cut", "--set", "stop_at_step=5")
    assert code == 0
    assert "train --resume runs/cut" in out
    code, out, err = invoke("train", "--resume", "runs/cut")
    assert code == 0, err
    ours = (tmp_path / "runs/cut/model/model.safetensors").read_bytes()
    assert ours == (small_run / "model/model.safetensors").read_bytes()


@pytest.mark.core
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], ["no configuration"]),
        (["train", "absent.yaml"], ["absent.yaml", "quickstart"]),
        (["train", "quickstart", "--set", "learning_rte=1"], ["learning_rate"]),
        (["train", "quickstart", "--set", "batch_size=-1"], ["batch_size", "-1"]),
        (["train", "quickstart", "--backend", "gpu"], ["gpu", "cpu, cuda, xla, tpu, tt"]),
        (["train", "quickstart", "--backend", "tt", "--set", "tt.device=hardware"], ["tt.device", "hardware"]),
        (["train", "quickstart", "--backend", "xla"], ["xla", "--backend cpu"]),
        (["train", "quickstart", "--set", "model_name=random:albert-huge"], ["random:albert-base-v2"]),
        (["train", "quickstart", "--set", "model_name=./absent"], ["./absent", "config.json"]),
        (["train", "quickstart", "--set", "model_name=random:tiny", "--set", "dataset_id=./absent"], ["./absent"]),
        (["train", "quickstart", "--set", "model_name=no/such-model"], ["no/such-model", "random:albert-base-v2"]),
        (["train", "quickstart", "--set", "dataset_id=no/such-data"], ["no/such-data"]),
        (["train", "--resume", "absent"], ["absent"]),
        (["config", "quickstart", "--set", "zzz=1"], ["zzz"]),
    ],
)
def test_wrong_input_ends_in_one_line_and_exit_2(invoke: Invoke, arguments: list[str], expected: list[str]) -> None:
    one_line_error(invoke(*arguments), *expected)
    assert not Path("runs").exists(), "nothing half-written is left behind"


@pytest.mark.core
def test_unknown_commands_and_options_exit_with_2(invoke: Invoke) -> None:
    assert invoke("no-such-command")[0] == 2
    assert invoke("train", "--no-such-option")[0] == 2


def test_debug_shows_the_traceback() -> None:
    from isotrain import UserError

    with pytest.raises(UserError):
        main(["train", "absent.yaml", "--debug"])


@pytest.mark.core
def test_a_diverging_run_exits_with_1(invoke: Invoke, small_run: Path) -> None:
    code, _, err = invoke(
        "train", "small.yaml", "--set", "run_name=x", "--set", "learning_rate=1e30", "--set", "optim=sgd"
    )
    assert code == 1
    assert "lower learning_rate" in err


def test_cells_that_are_no_text_are_refused_by_row(invoke: Invoke, small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "lost card"}\n{"id": 2}\n')
    one_line_error(invoke("predict", small_run, "--csv", "in.jsonl", "--out", "o.csv"), "in.jsonl, line 2", "None")
    (tmp_path / "half.jsonl").write_text('{"text": "lost card"}\n{"text": "card", "note": "\\ud83d"}\n')
    half = invoke("predict", small_run, "--csv", "half.jsonl", "--out", "o.csv")
    one_line_error(half, "half.jsonl:2", "surrogate")
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.core
def test_an_encoder_that_moved_is_named(invoke: Invoke, small_run: Path) -> None:
    one_line_error(invoke("predict", small_run, "x", "--model", "random:albert-base-v2"), "other weights", "--model")
    assert invoke("predict", small_run, "x", "--model", "random:tiny")[0] == 0


@pytest.mark.core
def test_a_folder_that_cannot_be_written_is_one_line(invoke: Invoke, small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\nlost card\n")
    one_line_error(invoke("predict", small_run, "--csv", "in.csv", "--out", "in.csv/x.csv"), "in.csv/x.csv")
    one_line_error(invoke("train", "small.yaml", "--set", "project_dir=in.csv"), "in.csv")
    one_line_error(invoke("train", "small.yaml", "--set", "project_dir=~nobody-here/x"), "home folder")
    one_line_error(invoke("train", "small.yaml", "--set", "dataset_id=" + "x" * 300), "x" * 20)
    one_line_error(invoke("train", "small.yaml", "--set", "batch_size=true"), "batch_size")
