"""Stored results shown again, the lists of names, and the forms in which users ask for help."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from isotrain.backends import list_backends
from isotrain.benchmarks.outcome.schemas import schemas
from isotrain.benchmarks.outcome.upgrade import upgraded
from isotrain.benchmarks.reports.blocks import Table, word_columns
from isotrain.benchmarks.reports.terminal import fitted
from isotrain.cli.main import app
from isotrain.conformance import doctor
from rich.console import Console
from rich.table import Table as RichTable
from support import forks
from support.command import Invoke, one_line_error
from support.packages import described
from support.results import parity

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
WIDTHS = [40, 60, 80, 120, 200]


@pytest.fixture
def stored(tmp_path: Path) -> list[Path]:
    """A result of every kind."""
    document: dict[str, Any] = parity()
    document["reference"]["dataset"] = "embedded:intents"
    (tmp_path / "parity.json").write_text(json.dumps(document))
    return [tmp_path / "parity.json", *sorted(RESULTS.glob("*.json"))]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    figures = {"eval/loss": 0.5, "eval/accuracy": 0.875}
    summary = {
        "status": "completed",
        "step": 10,
        "total_steps": 10,
        "model": "random:tiny (random weights)",
        "dataset": "embedded:intents",
        "device": "a processor",
        "dtype": "float32",
        **figures,
        "best": {**figures, "eval/loss": 0.25, "step": 5},
        "best_by": {"metric": "eval/loss", "mode": "min"},
        "collapse": None,
        "seconds": 1.5,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.mark.parametrize("width", WIDTHS)
def test_every_result_can_be_read_at_any_width(invoke: Invoke, stored: list[Path], width: int) -> None:
    for path in stored:
        code, out, err = invoke("show", path, "--width", width)
        assert code == 0, err
        assert max(map(len, out.splitlines())) <= width
        assert "…" not in out, (path.name, out)
        assert "random weights" in " ".join(out.split())
        document = json.loads(path.read_text())
        names = {entry["kernel"] for entry in document.get("targets", ())}
        names |= {side["name"] for side in document.get("sides", ())}
        assert {word for name in names for word in name.split()} <= set(out.split()), "no name is broken"


def test_the_document_itself_is_json(invoke: Invoke, stored: list[Path]) -> None:
    for path in stored:
        assert json.loads(invoke("show", path, "--json")[1]) == upgraded(json.loads(path.read_text()))


def test_results_of_every_schema_can_be_shown(invoke: Invoke, tmp_path: Path) -> None:
    for text in schemas().values():
        name = json.loads(text)["$id"]
        (tmp_path / "file.json").write_text(json.dumps({"schema": name}))
        one_line_error(invoke("show", tmp_path / "file.json"), "is not as its schema says (it lacks ")


def test_a_run_is_shown_by_its_folder(invoke: Invoke, run_folder: Path) -> None:
    code, out, _ = invoke("show", run_folder)
    assert code == 0
    for words in ("completed: random:tiny (random weights)", "best by loss", "0.2500", "0.8750", "10 of 10", "1.5"):
        assert words in out
    assert json.loads(invoke("show", run_folder, "--json")[1])["step"] == 10


def test_what_was_chosen_by_measuring_is_shown(invoke: Invoke, run_folder: Path, stored: list[Path]) -> None:
    """In a run's summary, and in a result whose targets say what their kernels were made of."""
    choice = {
        "name": "attention",
        "shape": "12 heads of 64",
        "way": "flash",
        "seconds": {"triton": 2e-4, "flash": 1e-4},
        "refused": {"other": "no memory"},
        "source": "measured",
    }
    summary = json.loads((run_folder / "summary.json").read_text())
    (run_folder / "summary.json").write_text(json.dumps(summary | {"choices": [choice]}))
    bench = next(path for path in stored if json.loads(path.read_text())["schema"] == "isotrain.bench/2")
    document = json.loads(bench.read_text())
    measured = next(target for target in document["targets"] if target["figures"])
    measured["kernel_used"]["choices"] = [choice]
    other = run_folder.parent / "chosen.json"
    other.write_text(json.dumps(document))
    line = "attention of 12 heads of 64: flash (measured; triton 0.2 ms; flash 0.1 ms; other: no memory)"
    for path in (run_folder, other):
        code, out, err = invoke("show", path, "--width", 200)
        assert code == 0, err
        assert line in " ".join(out.split())


def test_what_can_not_be_shown_is_one_line(invoke: Invoke, run_folder: Path, stored: list[Path]) -> None:
    folder = run_folder.parent
    one_line_error(invoke("show", folder), "holds no run")
    one_line_error(invoke("show", folder / "absent.json"), "absent.json")
    one_line_error(invoke("show", stored[0], "--width", "5"), "--width 5 is out of range")
    for content, expected in (
        ("{}", "has schema None"),
        ("[1]", "no object"),
        ("{", "odd.json"),
        ('{"schema": "isotrain.bench/2"}', "is not as its schema says (it lacks "),
        ('{"schema": "isotrain.parity/2", "steps": 3}', "is not as its schema says"),
        ('{"schema": ["isotrain.bench/2"]}', "has schema"),
    ):
        (folder / "odd.json").write_text(content)
        result = invoke("show", folder / "odd.json")
        one_line_error(result, expected)
        assert result[1] == ""
    for schema, name in itertools.product((["isotrain.bench/2"], "isotrain.run/9"), ("summary.json", "export.json")):
        (folder / name).write_text(json.dumps({"schema": schema}))
        one_line_error(invoke("show", folder / name), "which can't be shown")
    (run_folder / "summary.json").write_text('{"status": "completed"}')
    one_line_error(invoke("show", run_folder), "is not as its schema says")
    (run_folder / "summary.json").unlink()
    (run_folder / "config.yaml").write_text("")
    one_line_error(invoke("show", run_folder), "has not ended yet")


def test_a_table_without_room_becomes_blocks() -> None:
    columns = word_columns("name", "a long header", "other")
    table = Table("numbers", columns, [("first", "a value of several words", "-")])
    wide, narrow = (Console(width=width, file=io.StringIO()) for width in (80, 24))
    assert isinstance(fitted(table, wide), RichTable)
    narrow.print(fitted(table, narrow))
    lines = [line.rstrip() for line in narrow.file.getvalue().splitlines()]
    assert lines == ["numbers", "first", "  a long header: a value", "  of several words"]


@pytest.mark.parametrize(
    "command",
    [
        ("config", "--keys"),
        ("tt-estimate", "--model", "random:tiny"),
        ("tt-formats", "weights.npz"),
        ("bench", "--dry-run", "--model", "random:tiny"),
        ("list",),
    ],
)
def test_no_command_breaks_a_word_at_40_columns(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    np.savez(tmp_path / "weights.npz", **{"encoder.attention.query.weight": np.ones((32, 32), np.float32)})
    wide, narrow = [], []
    for width, words in ((400, wide), (40, narrow)):
        monkeypatch.setenv("COLUMNS", str(width))
        code, out, err = invoke(*command)
        assert code == 0, err
        words += re.findall(r"[\w/.-]{3,36}", out)
    # A block is led by its first column, whose name goes without saying.
    assert set(wide) - set(narrow) <= {"key", "fidelity", "format"}


def test_lists_name_what_there_is(invoke: Invoke) -> None:
    code, out, _ = invoke("list")
    assert code == 0
    for name in ("banking77", "cuda", "auto, native, portable", "train_step", "packed", "onnxruntime", "peft"):
        assert name in out
    document = json.loads(invoke("list", "--json")[1])
    assert document.pop("schema") == "isotrain.list/1"
    configs = Path(__file__).resolve().parents[2] / "configs"
    assert sorted(document["recipes"]) == sorted(path.stem for path in configs.glob("*.yaml"))
    assert all(document["recipes"].values())
    assert invoke("list", "recipes")[1].splitlines()[0] == "recipes"
    one_line_error(invoke("list", "recipe"), "did you mean recipes?")


def test_a_workload_of_an_installed_package_is_listed(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described(tmp_path, "tiny-models", "isotrain.workloads", {"tiny": "its.module:TinyGPT"}, "1.2")
    monkeypatch.syspath_prepend(tmp_path)
    code, out, err = invoke("list", "workloads")
    assert code == 0, err
    assert "its.module:TinyGPT, of the package tiny-models: isotrain bench tiny" in out
    assert "isotrain bench my_model.py:TinyGPT" in out
    names = json.loads(invoke("list", "workloads", "--json")[1])["workloads"]
    assert [*names][-3:] == ["end_to_end", "tiny", "FILE.py:NAME"]


def test_lists_are_those_that_the_commands_check_by() -> None:
    from isotrain.albert_core.inference.export import FORMATS
    from isotrain.benchmarks.harness.plan import END_TO_END, LAYOUTS, WORKLOADS
    from isotrain.cli.commands import list as lists

    assert tuple(lists.STEPS) == (*WORKLOADS, END_TO_END)
    assert tuple(lists._KINDS["layouts"]) == LAYOUTS
    assert sorted(lists._KINDS["formats"]) == sorted(FORMATS)


@pytest.mark.parametrize("command", [(), ("train",), ("bench",), ("parity",), ("parity", "run"), ("show",)])
def test_help_has_its_short_form_everywhere(invoke: Invoke, command: tuple[str, ...]) -> None:
    short, long = invoke(*command, "-h"), invoke(*command, "--help")
    assert short == long
    assert short[0] == 0
    assert "Usage:" in short[1]


def commands(group: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """Every command with the names that lead to it, the groups as well."""
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *path, name)


@pytest.fixture(scope="module")
def examined() -> list[doctor.Report]:
    """What doctor finds here, once for all widths."""
    with forks.forked_children():
        return doctor.examine(list_backends())


@pytest.mark.parametrize("width", [40, 80, 130])
def test_no_line_in_a_pipe_ends_with_a_space(
    invoke: Invoke,
    stored: list[Path],
    run_folder: Path,
    examined: list[doctor.Report],
    monkeypatch: pytest.MonkeyPatch,
    width: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: examined)
    every = list(commands(typer.main.get_command(app)))
    assert len(every) > 15
    shown = [("show", path) for path in (*stored, run_folder)]
    cheap = [("list",), ("doctor",), ("doctor", "-v"), ("config", "--keys"), ("config", "quickstart")]
    cheap += [("bench", "--dry-run", "--model", "random:tiny"), ("tt-estimate", "--model", "random:tiny")]
    for command in (*((*path, "--help") for path in every), *shown, *cheap, ("history", RESULTS)):
        code, out, err = invoke(*command)
        assert code == 0, (command, err)
        assert len(out.splitlines()) > 2, command
        assert not [line for line in (out + err).splitlines() if line.endswith(" ")], command


def test_help_is_drawn_with_characters_that_stdout_has(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "isotrain.cli", "train", "--help"]
    told = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    done = subprocess.run(program, env=told, capture_output=True, check=True)
    assert b"--resume" in done.stdout


def test_commands_and_options_stand_in_groups(invoke: Invoke) -> None:
    out = invoke("-h")[1]
    for panel in ("Train and use", "Measure and compare", "Show", "Tenstorrent"):
        assert panel in out
    for command, panels in {
        ("bench",): ("What is measured", "How thoroughly", "Output"),
        ("train",): ("What is run", "Continuing", "Output"),
        ("predict",): ("What is asked", "Which model, where", "Output"),
        ("export",): ("What is exported", "Output"),
        ("parity", "run"): ("What is run", "How thoroughly", "Output"),
        ("parity", "record"): ("What is run", "How thoroughly", "Output"),
    }.items():
        out = invoke(*command, "-h")[1]
        assert all(panel in out for panel in panels), command
        # Help alone stands outside.
        others = out.partition("╭─ Options ")[2].partition("╰")[0]
        assert len(re.findall(r"--[a-z]", others)) == 1, others
    assert invoke("-V")[1] == invoke("--version")[1]


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        (("trian",), "did you mean 'train'? `isotrain --help`"),
        (("bench", "--kernl", "x"), "did you mean --kernel? `isotrain bench --help`"),
        (("parity", "rcord"), "did you mean record? `isotrain parity --help`"),
        (("config", "--bogus"), "No such option: --bogus; `isotrain config --help`"),
    ],
)
def test_a_slip_is_told_the_nearest_name(invoke: Invoke, slip: tuple[str, ...], meant: str) -> None:
    one_line_error(invoke(*slip), meant)


def test_every_command_with_something_to_tell_has_json(invoke: Invoke) -> None:
    for command in ("train", "predict", "export", "bench", "compare", "history", "report", "show", "list", "config"):
        assert "--json" in invoke(command, "-h")[1], command
    for command in ("run", "record", "error-budget", "compare"):
        assert "--json" in invoke("parity", command, "-h")[1], command


def test_the_shell_completes_commands() -> None:
    told = {"_ISOTRAIN_COMPLETE": "complete_bash", "COMP_WORDS": "isotrain pre", "COMP_CWORD": "1"}
    program = "import sys; sys.argv[0] = 'isotrain'; from isotrain.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | told, capture_output=True, text=True, check=False
    )
    assert "predict" in done.stdout


def test_colour_is_for_terminals_alone(invoke: Invoke, stored: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in invoke("show", stored[0])[1]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[" in invoke("show", stored[0])[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[3\d", invoke("show", stored[0])[1]), "no colour; bold is none"


def test_help_takes_half_a_second() -> None:
    def seconds() -> float:
        before = time.process_time(), os.times().children_user + os.times().children_system
        subprocess.run([sys.executable, "-m", "isotrain.cli", "--help"], capture_output=True, check=True)
        return os.times().children_user + os.times().children_system - before[1]

    # The processor's seconds, for other work may hold it up.
    assert min(seconds() for _ in range(3)) < 0.5


def test_every_json_begins_with_its_schema_and_an_error_leaves_stdout_empty(
    invoke: Invoke, run_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for command in (
        ["list"],
        ["config", "quickstart"],
        ["config", "--keys"],
        ["tt-estimate", "--model", "random:tiny"],
        ["show", run_folder],
        *(["show", path] for path in sorted(RESULTS.glob("*.json"))),
        ["history", RESULTS],
        ["report", RESULTS, "-o", tmp_path / "page.html"],
    ):
        code, out, err = invoke(*map(str, command), "--json")
        assert code == 0, (command, err)
        first, schema = next(iter(json.loads(out).items()))
        assert first == "schema", command
        assert re.fullmatch(r"isotrain\.[a-z-]+/\d+", schema), command
    for command in (
        ["list", "no-such-list"],
        ["config", "no-such-file"],
        ["tt-estimate", "--model", "random:none"],
        ["show", tmp_path / "empty"],
        ["history", tmp_path / "empty"],
        ["report", tmp_path / "empty"],
        ["compare", tmp_path / "a.json", tmp_path / "b.json"],
        ["predict", tmp_path / "empty", "a text"],
        ["export", tmp_path / "empty"],
        ["train", "no-such-file"],
        ["bench", "--kernel", "none"],
        ["parity", "no-such-file", "--candidate", "cpu:float32"],
    ):
        code, out, err = invoke(*map(str, command), "--json")
        assert code == 2, command
        assert out == "", command
        assert len(err.splitlines()) == 1, command
