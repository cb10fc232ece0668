"""`isotrain compare` and `isotrain history`: verdicts, refusals, exit codes, and files that are no results."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isotrain import UserError
from isotrain.benchmarks.harness.environment import describe
from isotrain.benchmarks.harness.plan import Options, make_plan
from isotrain.benchmarks.outcome.build import build_result
from isotrain.benchmarks.outcome.load import load_result
from isotrain.benchmarks.regression.compare import (
    FASTER,
    REFUSED,
    REGRESSED,
    SLOWER,
    SOUND,
    UNDECIDED,
    UNUSABLE,
    Comparison,
    compare_files,
    parse_share,
)
from isotrain.benchmarks.regression.history import load_history
from isotrain.benchmarks.reports.terminal_history import print_history
from isotrain.cli.commands.compare import compare
from isotrain.cli.commands.history import history
from rich.console import Console
from support.results import end_to_end, end_to_end_run, end_to_end_side, timed_loop, whole_process
from typer import Typer
from typer.testing import CliRunner

pytestmark = pytest.mark.core

Write = Callable[..., Path]
OTHER = {"backend": "cpu", "device": "cpu", "name": "Other", "emulated": False}


@pytest.fixture
def write(all_runs: Callable[..., Any], tmp_path: Path) -> Write:
    """`write("a.json", slowdown, spoil)`: a result of two layouts, 3 processes x 9 blocks, 1 % of noise."""

    def make(
        name: str,
        slowdown: float = 0.0,
        *,
        options: dict[str, Any] | None = None,
        changes: dict[int, dict[str, Any]] | None = None,
        spoil: Callable[[dict[str, Any]], object] = len,
    ) -> Path:
        chosen = {"workloads": ("forward",), "layouts": ("padded", "packed")} | (options or {})
        plan = make_plan(Options(**chosen))
        runs = all_runs(plan, changes)
        generator = np.random.default_rng(sum(name.encode()))
        for run in runs:
            noise = np.exp(0.01 * generator.standard_normal(9))
            run.document.step_seconds[:] = (0.5 * (1 + slowdown) * noise).tolist()
        result = build_result(plan, runs, describe()).document()
        spoil(result)
        path = tmp_path / name
        path.write_text(json.dumps(result), encoding="utf-8")
        return path

    return make


def verdicts(comparison: Comparison) -> list[str]:
    return [one.verdict for one in comparison.targets]


def test_one_run_alone_decides_nothing(write: Write) -> None:
    comparison = compare_files(write("a.json"), write("b.json", 0.2))
    assert verdicts(comparison) == [UNDECIDED, UNDECIDED]
    assert {one.seen for one in comparison.targets} == {SLOWER}
    assert comparison.targets[0].reason == "slower, not confirmed by a second run"
    assert comparison.code == SOUND


@pytest.mark.parametrize(("slowdown", "verdict", "code"), [(0.2, SLOWER, REGRESSED), (-0.2, FASTER, SOUND)])
def test_what_a_second_run_confirms_is_a_verdict(write: Write, slowdown: float, verdict: str, code: int) -> None:
    a, b, again = write("a.json"), write("b.json", slowdown), write("c.json", slowdown)
    for confirmation in ([again], [write("d.json"), again]):
        comparison = compare_files(a, b, confirmation)
        assert verdicts(comparison) == [verdict, verdict]
        assert comparison.code == code
    speed = comparison.targets[0].speed
    assert speed is not None
    assert speed.low <= 1 / (1 + slowdown) <= speed.high


def test_a_second_run_that_disagrees_leaves_it_open(write: Write) -> None:
    comparison = compare_files(write("a.json"), write("b.json", 0.2), [write("c.json", 0.0)])
    assert verdicts(comparison) == [UNDECIDED, UNDECIDED]
    assert comparison.targets[0].reason == "slower, and the second run says no decision"


def test_the_same_measurement_confirms_nothing(write: Write) -> None:
    b = write("b.json", 0.2)
    with pytest.raises(UserError, match="the same measurement as the one to confirm; measure a second time"):
        compare_files(write("a.json"), b, [b])


def test_an_effect_within_the_gate_is_no_decision(write: Write) -> None:
    a, b, again = write("a.json"), write("b.json", 0.06), write("c.json", 0.06)
    assert verdicts(compare_files(a, b, [again])) == [SLOWER, SLOWER]
    comparison = compare_files(a, b, [again], gate=0.1)
    assert verdicts(comparison) == [UNDECIDED, UNDECIDED]
    assert comparison.targets[0].reason == "the effect is within 0.1"


def test_a_shared_machine_has_the_wider_gate(write: Write, document: Callable[..., Any]) -> None:
    busy = {0: {"environment": document()["environment"] | {"contended": True}}}
    comparison = compare_files(write("a.json"), write("b.json", 0.06, changes=busy), [write("c.json", 0.06)])
    assert [(one.verdict, one.threshold) for one in comparison.targets] == [(UNDECIDED, 0.1), (SLOWER, 0.03)]


def test_too_few_processes_or_blocks_decide_nothing(write: Write) -> None:
    quick = {"processes": 1}
    comparison = compare_files(write("a.json", options=quick), write("b.json", 0.5, options=quick))
    assert comparison.targets[0].reason == "fewer than 3 processes x 9 blocks"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"options": {"dtype": "float32"}}, "config.dtype differs: 'bfloat16' in"),
        ({"options": {"seed": 1}}, "config.seed differs: 23 in"),
        (
            {"changes": {0: {"device": {"backend": "cpu", "device": "cpu", "name": "Other", "emulated": False}}}},
            "device.name",
        ),
        ({"spoil": lambda result: (result.clear(), result.update(end_to_end_run()))}, "schema differs"),
    ],
)
def test_another_configuration_is_refused_by_its_key(write: Write, change: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as error:
        compare_files(write("a.json"), write("b.json", **change))
    assert key in str(error.value)


def test_invalid_figures_are_refused_and_the_other_targets_compared(write: Write) -> None:
    bad = {1: {"reasons": ["3 compilations inside the timed region"]}}
    comparison = compare_files(write("a.json"), write("b.json", -0.2, changes=bad), [write("c.json", -0.2)])
    assert verdicts(comparison) == [FASTER, REFUSED]
    assert comparison.targets[1].reason.startswith("invalid after: 3 compilations inside the timed region")
    assert comparison.code == UNUSABLE


def test_targets_that_only_one_has_are_named(write: Write) -> None:
    comparison = compare_files(write("a.json"), write("b.json", options={"layouts": ("padded",)}))
    assert len(comparison.targets) == 1
    assert comparison.alone == ("cpu forward packed auto x8",)
    with pytest.raises(UserError, match="no target in common"):
        compare_files(write("a.json"), write("b.json", options={"layouts": ("bucketed",)}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": "isotrain.bench/2", "targets": [', "x.json:1: truncated JSON"),
        ("", "x.json:1: truncated JSON"),
        ("[1, 2]", "its schema is None"),
        ('{"schema": "pytest-benchmark"}', "its schema is 'pytest-benchmark', known are isotrain.bench/2"),
        ('{"schema": "isotrain.bench/2"}', "it lacks created, status, valid"),
        ('{"schema": []}', "its schema is []"),
        (b"\xff\xfe\x00", "is UTF-16"),
        ("[" * 100_000, "x.json:1: nested"),
        ("9" * 5000, "x.json:1: a whole number of 5,000 digits"),
    ],
)
def test_what_is_no_result_is_said_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        load_result(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [-0.5, 0.0, float("nan"), None, "fast"])
def test_times_that_no_clock_gives_are_refused(write: Write, value: object) -> None:
    def backwards(result: dict[str, Any]) -> None:
        result["targets"][0]["processes"][1]["step_seconds"][2] = value

    with pytest.raises(UserError, match="are not the same number of positive seconds a process"):
        load_result(write("b.json", spoil=backwards))


def put(place: str, value: object) -> Callable[[dict[str, Any]], None]:
    """A change of a result: `value` at `place`, which is dotted."""

    def change(result: dict[str, Any]) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in place.split(".")]
        found: Any = result
        for part in way:
            found = found[part]
        found[last] = value

    return change


@pytest.mark.parametrize("value", [None, [], {}, "x"])
@pytest.mark.parametrize(
    "place",
    [
        "config",
        "environment",
        "environment.git",
        "targets",
        "targets.0",
        "targets.0.reasons",
        "targets.0.figures.samples_per_second",
        "targets.0.device",
        "targets.0.model",
        "targets.0.work.samples",
        "targets.0.processes",
        "targets.0.processes.0",
        "targets.0.processes.0.environment",
    ],
)
def test_a_result_of_other_types_is_compared_or_refused_in_words(
    write: Write, tmp_path: Path, place: str, value: object
) -> None:
    """Never an error of Python's: whatever isn't used may be anything."""
    good, odd = write("a.json"), write("b.json", spoil=put(place, value))
    app = Typer()
    app.command("compare")(compare)
    app.command("history")(history)
    for arguments in (["compare", str(good), str(odd)], ["compare", str(odd), str(good)], ["history", str(tmp_path)]):
        ended = CliRunner().invoke(app, arguments)
        assert isinstance(ended.exception, (SystemExit, UserError, type(None))), (arguments, ended.exception)


def test_what_is_not_as_it_should_be_is_named_by_its_place(write: Write) -> None:
    with pytest.raises(UserError, match=r"targets.0.device.name: input should be a valid string"):
        load_result(write("a.json", spoil=put("targets.0.device.name", 7)))
    with pytest.raises(UserError, match=r"it lacks targets.0.work.samples"):
        load_result(write("b.json", spoil=put("targets.0.work", {})))


def test_a_end_to_end_run_without_its_times_is_none(tmp_path: Path) -> None:
    result = end_to_end(end_to_end_side(whole_process(seconds=0.0)))
    (tmp_path / "a.json").write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(UserError, match=r"sides.0.processes.0.seconds: input should be greater than 0"):
        load_result(tmp_path / "a.json")
    result = end_to_end(end_to_end_side(timed_loop(), extrapolated=False))
    (tmp_path / "a.json").write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(UserError, match="processes of side 'isotrain train' are not those that it is of"):
        load_result(tmp_path / "a.json")


def test_end_to_end_runs_are_compared_too(tmp_path: Path) -> None:
    def whole(name: str, seconds: float) -> Path:
        processes = [whole_process(seconds=seconds * factor) for factor in (0.999, 1.0, 1.001)]
        result = end_to_end(end_to_end_side(*processes), created=name)
        (tmp_path / name).write_text(json.dumps(result), encoding="utf-8")
        return tmp_path / name

    comparison = compare_files(whole("a.json", 90.0), whole("b.json", 120.0), [whole("c.json", 121.0)])
    assert verdicts(comparison) == [SLOWER]
    assert comparison.targets[0].threshold == 0.1, "nobody knows whether the machine was shared"
    assert comparison.code == REGRESSED


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), (" 10 %", 0.1), ("0%", 0.0)])
def test_a_gate_is_a_share(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["five", "-1%", "100%", "nan", ""])
def test_what_is_no_gate_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="allowed is 0% to 99%"):
        parse_share(text)


def run(command: Callable[..., None], *arguments: object) -> Any:
    app = Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_compare_ends_in_its_verdict(write: Write) -> None:
    a, b, c = write("a.json"), write("b.json", 0.2), write("c.json", 0.2)
    once = run(compare, a, b)
    assert once.exit_code == 0
    assert "one run decides nothing" in once.output
    assert "of random:tiny (random weights), bfloat16 (computed in float32), Fake CPU" in once.output
    confirmed = run(compare, a, b, "--again", c, "--gate", "5%")
    assert confirmed.exit_code == 1
    assert "0.83" in confirmed.output
    document = json.loads(run(compare, a, b, "--again", c, "--json").stdout)
    assert [target["verdict"] for target in document["targets"]] == ["slower", "slower"]
    assert document["code"] == 1


def dated(created: str, revision: str) -> Callable[[dict[str, Any]], None]:
    def date(result: dict[str, Any]) -> None:
        result["created"] = created
        result["environment"]["git"] = {"revision": revision * 40, "dirty": revision == "b", "changed_files": 1}

    return date


def test_a_history_is_in_the_order_of_measuring_with_each_change(write: Write, tmp_path: Path) -> None:
    write("2.json", -0.5, spoil=dated("2026-02-01T00:00:00+00:00", "b"))
    write("1.json", spoil=dated("2026-01-01T00:00:00+00:00", "a"))
    bad = {0: {"reasons": ["NaN"]}}
    write("3.json", changes=bad, spoil=dated("2026-03-01T00:00:00+00:00", "c"))
    write("4.json", options={"dtype": "float32"})
    (tmp_path / "notes.json").write_text("{}", encoding="utf-8")
    found = load_history(tmp_path)
    rows = [row for row in found.rows() if row["target"] == "cpu forward padded auto x8"]
    assert [row["revision"] for row in rows[:3]] == ["a" * 10, "b" * 10 + "+", "c" * 10]
    assert rows[0]["change_median"] == ""
    assert rows[1]["change_median"] == pytest.approx(2.0, rel=0.05)
    assert not rows[2]["valid"]
    assert rows[2]["change_median"] == ""
    assert len(rows) == 4, "another configuration is a line of its own"
    assert rows[3]["change_median"] == ""
    assert found.skipped == ()
    assert found.foreign == "notes.json is no result of isotrain, and left out"
    shown = run(history, tmp_path)
    assert shown.exit_code == 0
    assert "INVALID" in shown.output
    assert "random:tiny (random weights)" in shown.output
    assert "2026-01-01 00:00" in shown.output
    assert "▁█x" in shown.output
    assert "2.000x*" in shown.output
    assert "notes.json is no result of isotrain, and left out" in shown.output
    listed = list(csv.DictReader(io.StringIO(run(history, tmp_path, "--format", "csv").stdout)))
    assert len(listed) == len(found.points)


def test_a_folder_without_results_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no result of isotrain bench"):
        load_history(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        load_history(tmp_path / "nowhere")


@pytest.mark.parametrize("width", [50, 60, 80, 120, 200])
def test_a_history_is_readable_at_any_width(write: Write, tmp_path: Path, width: int) -> None:
    for number in range(8):
        write(f"{number}.json", -0.05 * number, spoil=dated(f"2026-0{number + 1}-01T00:00:00+00:00", str(number)))
    console = Console(width=width, file=io.StringIO(), highlight=False)
    print_history(load_history(tmp_path), console)
    output = console.file.getvalue()
    lines = output.splitlines()
    assert max(map(len, lines)) <= width
    rows = [line.split() for line in lines if "2026-08-01" in line]
    assert rows
    assert all(row[2] == "7" * 10 and row[-1].rstrip("*").endswith("x") for row in rows)
    assert ("95 % interval" in output) == (width >= 72)
    assert "…" not in output
