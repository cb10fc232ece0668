"""`isotrain compare` and `isotrain history`: verdicts, refusals, exit codes, and files that are no results."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from isotrain import UserError
from isotrain.benchmarks.harness.environment import describe
from isotrain.benchmarks.harness.plan import Options, make_plan
from isotrain.benchmarks.outcome.build import build_result
from isotrain.benchmarks.outcome.load import load_result
from isotrain.benchmarks.regression.compare import Asked, Comparison, compare_files
from isotrain.benchmarks.regression.history import load_history
from isotrain.benchmarks.regression.metrics import parse_share
from isotrain.benchmarks.regression.verdict import (
    FAILED,
    IMPROVED,
    INCONCLUSIVE,
    MISSING,
    REFUSED,
    REGRESSED,
    SAME,
    SOUND,
    UNDECIDED,
    UNUSABLE,
)
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
    return [one.verdict.outcome for one in comparison.targets]


def test_one_pair_alone_confirms_no_regression(write: Write) -> None:
    comparison = compare_files(write("a.json"), write("b.json", 0.2))
    assert verdicts(comparison) == [INCONCLUSIVE, INCONCLUSIVE]
    assert {one.verdict.seen for one in comparison.targets} == {REGRESSED}
    assert comparison.targets[0].verdict.reason == "regression, not confirmed by a second run"
    assert comparison.code == UNDECIDED


def test_one_pair_shows_that_nothing_regressed(write: Write) -> None:
    """Equivalence, not the absence of a finding: the interval lies within the gate."""
    comparison = compare_files(write("a.json"), write("b.json"))
    assert verdicts(comparison) == [SAME, SAME]
    assert comparison.code == SOUND
    faster = compare_files(write("a.json"), write("c.json", -0.2))
    assert verdicts(faster) == [SAME, SAME], "less time is no regression, even where nobody confirmed how much"
    assert faster.targets[0].verdict.reason == "improvement, not confirmed by a second run"


@pytest.mark.parametrize(("slowdown", "verdict", "code"), [(0.2, REGRESSED, FAILED), (-0.2, IMPROVED, SOUND)])
def test_what_a_second_run_confirms_is_a_verdict(write: Write, slowdown: float, verdict: str, code: int) -> None:
    a, b, again = write("a.json"), write("b.json", slowdown), write("c.json", slowdown)
    for confirmation in ([again], [write("d.json"), again]):
        comparison = compare_files(a, b, confirmation)
        assert verdicts(comparison) == [verdict, verdict]
        assert comparison.code == code
    speed = comparison.targets[0].ratio
    assert speed is not None
    assert speed.low <= 1 / (1 + slowdown) <= speed.high


@pytest.mark.parametrize(("first", "second"), [(0.2, 0.0), (0.0, 0.2)])
def test_a_second_run_that_disagrees_leaves_it_open(write: Write, first: float, second: float) -> None:
    comparison = compare_files(write("a.json"), write("b.json", first), [write("c.json", second)])
    assert verdicts(comparison) == [INCONCLUSIVE, INCONCLUSIVE]
    seen = [SAME, REGRESSED] if second else [REGRESSED, SAME]
    assert comparison.targets[0].verdict.reason == f"{seen[0]}, and the second run says {seen[1]}"


def test_the_same_measurement_confirms_nothing(write: Write) -> None:
    b = write("b.json", 0.2)
    with pytest.raises(UserError, match="the same measurement as the one to confirm; measure a second time"):
        compare_files(write("a.json"), b, [b])


def test_an_effect_within_the_gate_is_no_regression(write: Write) -> None:
    a, b, again = write("a.json"), write("b.json", 0.06), write("c.json", 0.06)
    assert verdicts(compare_files(a, b, [again])) == [REGRESSED, REGRESSED]
    assert verdicts(compare_files(a, b, [again], Asked(gates=["10%"]))) == [SAME, SAME]


def test_what_the_pair_could_not_show_is_inconclusive_and_said(write: Write) -> None:
    """6 % of noise between the processes: neither a regression of 3 % nor its absence can be seen."""

    def noisy(result: dict[str, Any]) -> None:
        for target in result["targets"]:
            for process, factor in zip(target["processes"], (0.94, 1.0, 1.06), strict=True):
                process["step_seconds"] = [seconds * factor for seconds in process["step_seconds"]]

    comparison = compare_files(write("a.json", spoil=noisy), write("b.json", spoil=noisy))
    assert verdicts(comparison) == [INCONCLUSIVE, INCONCLUSIVE]
    one = comparison.targets[0]
    assert one.ratio is not None
    assert one.verdict.detectable == pytest.approx(one.ratio.high / one.ratio.median - 1, rel=0.01)
    assert one.verdict.reason.startswith(f"would have seen >= {100 * one.verdict.detectable:.2g} % only; needs ")
    assert [
        compare_files(write("a.json", spoil=noisy), write("b.json", spoil=noisy), (), Asked(on_undecided=policy)).code
        for policy in ("fail", "warn", "pass")
    ] == [UNDECIDED, SOUND, SOUND]


def test_an_interval_wider_than_twice_is_no_result(write: Write) -> None:
    def wild(result: dict[str, Any]) -> None:
        for process, factor in zip(result["targets"][0]["processes"], (0.3, 1.0, 3.0), strict=True):
            process["step_seconds"] = [seconds * factor for seconds in process["step_seconds"]]

    a, b = write("a.json", spoil=wild), write("b.json", 4.0, spoil=wild)
    reason = compare_files(a, b).targets[0].verdict.reason
    assert reason.startswith("no result: the interval is wider than 2x; needs ")
    assert reason.endswith("a quieter machine")
    row = next(csv.DictReader(io.StringIO(run(compare, a, b, "--format", "csv").stdout)))
    assert (row["verdict"], row["ratio_median"]) == (INCONCLUSIVE, "")


def test_no_interval_goes_beyond_the_rate_of_the_unit(write: Write) -> None:
    """The newer side reaches 95 % of its peak: its noise can't mean that it is a tenth faster than that."""

    def near_the_peak(result: dict[str, Any]) -> None:
        reached = result["targets"][0]["figures"]["hardware_tflops"]["median"]
        put("targets.0.peaks.matmul_tflops", reached / 0.95)(result)
        for process, factor in zip(result["targets"][0]["processes"], (0.85, 1.0, 1.15), strict=True):
            process["step_seconds"] = [seconds * factor for seconds in process["step_seconds"]]

    one = compare_files(write("a.json"), write("b.json", spoil=near_the_peak)).targets[0]
    assert one.ratio is not None
    assert one.ratio.low < 0.9
    assert one.ratio.median < one.ratio.high < 1.0 / 0.95 + 0.02


def test_a_shared_machine_has_the_wider_gate(write: Write, document: Callable[..., Any]) -> None:
    busy = {0: {"environment": document()["environment"] | {"contended": True}}}
    comparison = compare_files(write("a.json"), write("b.json", 0.06, changes=busy), [write("c.json", 0.06)])
    assert [one.threshold for one in comparison.targets] == [0.1, 0.03]
    assert comparison.targets[1].verdict.outcome == REGRESSED


def test_too_few_processes_or_blocks_decide_nothing(write: Write) -> None:
    quick = {"processes": 1}
    comparison = compare_files(write("a.json", options=quick), write("b.json", 0.5, options=quick))
    assert comparison.targets[0].verdict.reason == "fewer than 3 processes x 9 blocks"
    assert comparison.code == UNDECIDED


def memory(factor: float) -> Callable[[dict[str, Any]], None]:
    def change(result: dict[str, Any]) -> None:
        for target in result["targets"]:
            for process in target["processes"]:
                process["memory"]["peak_bytes"] = int(process["memory"]["peak_bytes"] * factor)
                process["losses"] = [2.0 * factor, 1.9 * factor]

    return change


def test_more_than_speed_is_gated_each_with_its_own_threshold(write: Write) -> None:
    a, b = write("a.json", spoil=memory(1.0)), write("b.json", spoil=memory(1.04))
    asked = Asked(what=["speed", "memory", "loss"])
    found = {(one.what, one.verdict.seen) for one in compare_files(a, b, (), asked).targets}
    assert found == {("speed", SAME), ("memory", SAME), ("loss", REGRESSED)}
    tight = Asked(what=["memory"], gates=["memory=2%"])
    assert {one.verdict.seen for one in compare_files(a, b, (), tight).targets} == {REGRESSED}
    lacking = compare_files(write("c.json"), b, (), Asked(what=["loss"])).targets[0]
    assert (lacking.verdict.outcome, lacking.verdict.reason) == (REFUSED, "no loss before")
    with pytest.raises(UserError, match="no target of either result has a figure of energy; drop --what energy"):
        compare_files(a, b, (), Asked(what=["energy"]))


def test_memory_that_grows_is_a_warning(write: Write) -> None:
    a, b = write("a.json"), write("b.json", spoil=put("targets.0.memory.growth_bytes_per_step", 1e5))
    warned = "cpu forward padded auto x8: memory grows by 0.1 MB a step (not before)"
    assert compare_files(a, b, (), Asked(what=["memory"])).warnings == (warned,)
    assert f"warning: {warned}" in run(compare, a, b, "--what", "memory", "--format", "markdown").stdout


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(what=["sped"]), "did you mean speed?"),
        (Asked(gates=["memory=2%"]), "is for memory, which isn't compared; add --what memory"),
        (Asked(gates=["mem=2%"]), "allowed are speed, memory"),
        (Asked(on_undecided="ignore"), "allowed are fail, warn, pass"),
        (Asked(allow=["weather"]), "allowed are processor, governor"),
    ],
)
def test_what_a_comparison_can_not_be_asked_for(write: Write, asked: Asked, message: str) -> None:
    with pytest.raises(UserError) as error:
        compare_files(write("a.json"), write("b.json"), (), asked)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("place", "value", "key"),
    [
        ("environment.cpu.model", "Another CPU", "processor"),
        ("environment.cpu.governor", "powersave", "governor"),
        ("environment.cpu.nice", 10, "nice"),
        ("environment.cpu.quota_cpus", 1.5, "quota"),
        ("environment.versions.torch", "9.9.9", "torch"),
        ("targets.0.kernel_used.name", "portable-2", "kernel"),
        ("targets.0.device.name", "Other", "device"),
        ("targets.0.processes.0.environment.threads.intra_op", 99, "threads"),
        ("targets.0.processes.0.environment.affinity", [0, 1, 2, 5], "affinity"),
    ],
)
def test_what_decides_speed_must_be_allowed_by_name(write: Write, place: str, value: object, key: str) -> None:
    def settled(result: dict[str, Any]) -> None:
        for spot, usual in (("governor", "performance"), ("nice", 0), ("quota_cpus", "unlimited")):
            result["environment"]["cpu"][spot] = usual
        result["targets"][0]["processes"][0]["environment"]["affinity"] = [0, 1]

    def changed(result: dict[str, Any]) -> None:
        settled(result)
        put(place, value)(result)

    a, b = write("a.json", spoil=settled), write("b.json", spoil=changed)
    with pytest.raises(UserError, match=f"which decides speed; measure both alike, or accept it by --allow {key}"):
        compare_files(a, b)
    comparison = compare_files(a, b, (), Asked(allow=[key]))
    assert [one.key for one in comparison.differences] == [key]
    assert f"differs: {comparison.differences[0].words()}" in run(compare, a, b, "--allow", key).output


def test_what_does_not_decide_speed_is_listed(write: Write) -> None:
    a, b = write("a.json"), write("b.json", spoil=put("environment.versions.isotrain", "0.0.1"))
    assert [one.key for one in compare_files(a, b).differences] == ["isotrain"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"options": {"dtype": "float32"}}, "config.dtype differs: 'bfloat16' in"),
        ({"options": {"seed": 1}}, "config.seed differs: 23 in"),
        ({"changes": {0: {"device": OTHER}}}, "device Fake CPU -> Other"),
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
    assert verdicts(comparison) == [IMPROVED, REFUSED]
    assert comparison.targets[1].verdict.reason.startswith("invalid after: 3 compilations inside the timed region")
    assert comparison.code == UNUSABLE


@pytest.mark.parametrize("slowdown", [-0.5, 0.0, 0.5])
def test_other_answers_are_refused_however_fast(write: Write, slowdown: float) -> None:
    """Each is right by its own reference, as it would be if the references differed."""
    answers = {"0": [1.0, 2.0], "1": [3.0, 4.1]}
    other = {0: {"probe": answers, "expected": answers}}
    comparison = compare_files(write("a.json"), write("b.json", slowdown, changes=other))
    assert verdicts(comparison)[0] == REFUSED
    assert comparison.targets[0].verdict.reason == (
        "its logits of the same texts differ by 2.0e-02 in relative L2 (at most 0.0001)"
    )
    assert verdicts(comparison)[1] != REFUSED
    assert comparison.code == UNUSABLE


def test_a_target_that_only_one_has_fails_unless_it_may(write: Write) -> None:
    a, b = write("a.json"), write("b.json", options={"layouts": ("padded",)})
    for pair, which in (((a, b), "before"), ((b, a), "after")):
        comparison = compare_files(*pair)
        assert verdicts(comparison) == [SAME, MISSING]
        assert comparison.targets[1].label == "cpu forward packed auto x8"
        assert comparison.targets[1].verdict.reason == f"only {which} has it; --allow-missing lets that pass"
        assert (comparison.code, compare_files(*pair, (), Asked(allow_missing=True)).code) == (FAILED, SOUND)
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
    assert verdicts(comparison) == [REGRESSED]
    assert comparison.targets[0].threshold == 0.1, "nobody knows whether the machine was shared"
    assert comparison.code == FAILED


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
    assert once.exit_code == 3
    assert "one pair of runs confirms no change" in once.output
    assert "of random:tiny (random weights), bfloat16 (computed in float32), Fake CPU" in once.output
    confirmed = run(compare, a, b, "--again", c, "--gate", "5%")
    assert confirmed.exit_code == 1
    assert "0.83" in confirmed.output
    document = json.loads(run(compare, a, b, "--again", c, "--json").stdout)
    assert [target["verdict"] for target in document["targets"]] == ["regression", "regression"]
    assert document["code"] == 1


def test_a_ci_service_gets_the_verdicts_in_its_own_formats(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    a, b, c = write("a.json"), write("b.json", 0.2), write("c.json", 0.2)
    annotated = run(compare, a, b, "--again", c, "--format", "github")
    assert annotated.exit_code == 1
    assert annotated.stdout.splitlines()[0].startswith(
        "::error title=regression%3A cpu forward padded auto x8::speed 0.8"
    )
    assert summary.read_text(encoding="utf-8").count("| regression |") == 2
    warned = run(compare, a, b, "--format", "github", "--on-undecided", "warn")
    assert (warned.exit_code, warned.stdout.count("::warning ")) == (0, 2)
    assert run(compare, a, write("d.json"), "--format", "github").stdout.startswith("::notice::")

    suite = ElementTree.fromstring(run(compare, a, b, "--again", c, "--format", "junit").stdout)
    assert (suite.get("tests"), suite.get("failures")) == ("2", "2")
    assert {case.get("name") for case in suite} == {"cpu forward padded auto x8", "cpu forward packed auto x8"}
    assert "gate 0.03" in str(suite[0][0].get("message"))

    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(io.StringIO(run(compare, a, b, "--again", c, "--format", "csv").stdout))
    assert frame.verdict.tolist() == ["regression"] * 2
    assert frame.ratio_high.max() < 1


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
