"""The command line of `isotrain bench`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from isotrain import UserError
from isotrain.benchmarks import bench as bench_module
from isotrain.benchmarks.harness import runner
from isotrain.cli.commands.bench import bench
from typer.testing import CliRunner

app = typer.Typer()
app.command()(bench)


@pytest.fixture
def invoke(fake_worker: Callable[..., tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The command in an empty folder, with workers that act as told."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, acts: dict | None = None):
        command = fake_worker(acts)
        monkeypatch.setattr(
            bench_module, "run_workers", lambda plan, started, _: runner.run_workers(plan, started, command)
        )
        return CliRunner().invoke(app, list(arguments))

    return run


def test_dry_run_prints_the_plan_and_measures_nothing(invoke: Callable, tmp_path: Path) -> None:
    done = invoke("--dry-run", "--kernel", "auto", "--kernel", "transformers")
    assert done.exit_code == 0
    assert "train_step packed auto x8" in done.stdout
    left_out = "left out: cpu forward packed transformers x8: transformers takes padded batches only"
    assert left_out in " ".join(done.stdout.split())
    assert "42 processes, each 9 blocks in about 10 s after about 5 s of start-up" in " ".join(done.stdout.split())
    assert not (tmp_path / "results").exists()


def test_quick_runs_one_process_and_says_where_the_result_is(invoke: Callable, tmp_path: Path) -> None:
    done = invoke("--quick", "--workload", "forward", "--layout", "packed")
    assert done.exit_code == 0, done.output
    files = list((tmp_path / "results").iterdir())
    assert len(files) == 1
    assert f"result: results/{files[0].name}" in done.stdout
    assert "quick: 1 process of 3 blocks" in done.stdout
    assert done.stderr.startswith("1 process, each 3 blocks in about 3 s after about 5 s of start-up and a warm-up, ")
    assert json.loads(files[0].read_text(encoding="utf-8"))["method"]["quick"] is True


def test_nothing_stands_before_the_line_about_a_place_that_can_not_be_written(invoke: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = invoke("--quick", "--out", "file/result.json")
    assert isinstance(done.exception, UserError)
    assert done.output == ""


def test_json_is_all_that_stdout_gets_and_no_file_unasked(invoke: Callable, tmp_path: Path) -> None:
    done = invoke("--quick", "--json", "--layout", "packed")
    assert json.loads(done.stdout)["schema"] == "isotrain.bench/2"
    assert not (tmp_path / "results").exists()
    asked = invoke("--quick", "--json", "--layout", "packed", "--out", "r.json")
    assert json.loads(asked.stdout) == json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))


def test_every_option_reaches_the_plan(invoke: Callable) -> None:
    arguments = "--model random:tiny --dtype float32 --strict-dtype --max-length 64 --threads 1 --seed 5 --quick --json"
    arguments += " --batch-size 4 --batch-size 2 --workload forward --layout packed --kernel portable"
    arguments += " --dataset somewhere --blocks 4 --seconds 0.5 --processes 2 --backend cpu"
    result = json.loads(invoke(*arguments.split()).stdout)
    config, method = result["config"], result["method"]
    assert config["model"] == "random:tiny"
    assert config["dtype"] == "float32"
    assert config["strict_dtype"] is True
    assert (config["max_length"], config["threads"], config["seed"], config["dataset"]) == (64, 1, 5, "somewhere")
    assert (method["processes"], method["blocks"], method["seconds"], method["quick"]) == (2, 4, 0.5, True)
    assert [entry["label"] for entry in result["targets"]] == [
        "cpu forward packed portable x4",
        "cpu forward packed portable x2",
    ]


def test_several_dtypes_are_targets_of_one_run_and_named_in_it(invoke: Callable) -> None:
    arguments = "--dtype bfloat16 --dtype int8 --workload forward --layout packed --quick --out r.json"
    done = invoke(*arguments.split())
    assert done.exit_code == 0, done.output
    assert "forward packed auto int8 x8" in done.stdout
    result = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert result["config"]["dtype"] == "bfloat16, int8"
    assert [(entry["label"], entry["dtype"]) for entry in result["targets"]] == [
        ("cpu forward packed auto bfloat16 x8", "bfloat16"),
        ("cpu forward packed auto int8 x8", "int8"),
    ]
    assert result["targets"][1]["relative"]["to"] == "cpu forward packed auto bfloat16 x8"


def test_an_invalid_figure_is_printed_as_such_and_ends_in_1(
    invoke: Callable, document: Callable, tmp_path: Path
) -> None:
    acts = {"packed/0": {"document": document(reasons=["3 compilations inside the timed region"])}}
    done = invoke("--quick", "--workload", "forward", "--layout", "packed", acts=acts)
    assert done.exit_code == 1
    assert "INVALID forward packed auto x8" in done.stdout
    assert "3 compilations inside the timed region" in done.stdout


def test_wrong_values_are_user_errors_before_anything_runs(invoke: Callable) -> None:
    done = invoke("--layout", "ragged")
    assert isinstance(done.exception, UserError)
    assert "allowed are padded, bucketed, dynamic, packed" in str(done.exception)


def test_the_help_explains_each_option(invoke: Callable) -> None:
    text = invoke("--help").stdout
    for option in ("--backend", "--workload", "--layout", "--kernel", "--quick", "--out", "--json", "--dry-run"):
        assert option in text


@pytest.mark.parametrize(("name", "beginning"), [("csv", "target,backend,workload"), ("markdown", "`"), ("json", "{")])
def test_stdout_is_what_format_names_and_nothing_else(
    invoke: Callable, tmp_path: Path, name: str, beginning: str
) -> None:
    done = invoke("--quick", "--format", name, "--layout", "packed", "--workload", "forward")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(beginning)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "xml"), "--format 'xml' does not exist; allowed are table, json, csv, markdown"),
        (("--json", "--format", "csv"), "both name what stdout gets"),
        (("--dtype", "int8", "--dtype", "int8"), "--dtype is given int8, int8; give each value once"),
        (
            ("--workload", "end_to_end", "--dataset", "embedded:intents", "--dtype", "float32", "--dtype", "bfloat16"),
            "runs one backend, kernel and dtype; give --backend, --kernel and --dtype once",
        ),
        (("--threads", "1", "--threads", "2"), "--threads is given 1, 2; a result has one value"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    invoke: Callable, arguments: tuple[str, ...], message: str
) -> None:
    assert message in str(invoke(*arguments).exception)


def test_a_plan_of_pairs_says_so(invoke: Callable) -> None:
    done = invoke("--against", "HEAD", "--dry-run", "--workload", "forward", "--layout", "packed")
    assert done.exit_code == 0, done.output
    words = " ".join(done.stdout.split())
    assert "6 pairs, each 20 blocks of both in about 5 s" in words
    assert "pair" in words.split("target")[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--gate", "5%"], "--gate 5% is for --against"),
        (["--on-undecided", "warn"], "--on-undecided warn is for --against"),
        (["--against", "HEAD", "--on-undecided", "maybe"], "--on-undecided 'maybe'"),
        (["--against", "HEAD", "--gate", "much"], "--gate 'much' is no share"),
        (["--against", "HEAD", "--vs", "baselines"], "--vs compares with baselines; give one of them"),
        (["--against", "HEAD", "--workload", "end_to_end"], "drop --workload end_to_end"),
        (["--against", "no-such-revision"], "'no-such-revision'"),
        (["--against", "HEAD", "--format", "xml"], "--format 'xml'"),
        (["--format", "junit"], "--format 'junit'"),
    ],
)
def test_what_can_not_be_compared_is_refused(invoke: Callable, arguments: list[str], expected: str) -> None:
    done = invoke("--workload", "forward", *arguments)
    assert isinstance(done.exception, UserError)
    assert expected in str(done.exception)
