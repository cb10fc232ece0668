"""`isotrain compare` and `isotrain history`: verdicts, refusals, exit codes, and files that are no results."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from isotrain import UserError
from isotrain.benchmarks.regression.compare import Asked, Comparison, compare_files
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
from isotrain.cli.commands.compare import compare
from support.results import end_to_end, end_to_end_run, end_to_end_side, put, run_command, whole_process

pytestmark = pytest.mark.core

Write = Callable[..., Path]
OTHER = {"backend": "cpu", "device": "cpu", "name": "Other", "emulated": False}


def verdicts(comparison: Comparison) -> list[str]:
    return [one.verdict.outcome for one in comparison.targets]


def test_one_pair_alone_confirms_no_regression(write: Write) -> None:
    comparison = compare_files(write("a.json"), write("b.json", 0.2))
    assert verdicts(comparison) == [INCONCLUSIVE, INCONCLUSIVE]
    assert {one.verdict.seen for one in comparison.targets} == {REGRESSED}
    assert comparison.targets[0].verdict.reason.startswith("regression, not confirmed by a second run; ")
    assert comparison.code == UNDECIDED


def test_one_pair_shows_that_nothing_regressed(write: Write) -> None:
    """Not the absence of a finding: the interval lies below the gate."""
    comparison = compare_files(write("a.json"), write("b.json"))
    assert verdicts(comparison) == [SAME, SAME]
    assert comparison.code == SOUND
    faster = compare_files(write("a.json"), write("c.json", -0.2))
    assert verdicts(faster) == [SAME, SAME], "less time is no regression, even where nobody confirmed how much"
    assert faster.targets[0].verdict.reason.startswith("improvement, not confirmed by a second run; ")


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
    assert comparison.targets[0].verdict.reason.startswith(f"{seen[0]}, and the second run says {seen[1]}; ")


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
    row = next(csv.DictReader(io.StringIO(run_command(compare, a, b, "--format", "csv").stdout)))
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
    assert [one.contended for one in comparison.targets] == [True, False]


def test_what_disturbed_either_side_is_in_every_view(write: Write, document: Callable[..., Any]) -> None:
    busy = {"environment": document()["environment"] | {"contended": True}}
    a, b = write("a.json", changes={0: {"warnings": ["hot"]}}), write("b.json", changes={1: busy})
    told = (
        "cpu forward padded auto x8: before: hot (process 1, 2, 3)",
        "cpu forward packed auto x8: after: contended: other work used the CPUs of 3 of 3 processes",
    )
    asked = ("--what", "speed", "--what", "memory")
    for shown in ("table", "markdown", "github"):
        lines = " ".join(run_command(compare, a, b, *asked, "--format", shown).stdout.split())
        assert [lines.count(f"warning: {line}") for line in told] == [1, 1], shown
    suite = ElementTree.fromstring(run_command(compare, a, b, "--format", "junit").stdout)
    assert [one.get("value") for one in suite.iterfind("properties/property[@name='warning']")] == list(told)
    targets = json.loads(run_command(compare, a, b, "--json").stdout)["targets"]
    rows = list(csv.DictReader(io.StringIO(run_command(compare, a, b, "--format", "csv").stdout)))
    for one, row, line, contended in zip(targets, rows, told, (False, True), strict=True):
        assert (one["contended"], row["contended"]) == (contended, str(contended))
        assert [f"{one['label']}: {warning}" for warning in one["warnings"]] == [line]
        assert row["warnings"] == one["warnings"][0]


def test_too_few_processes_or_blocks_decide_nothing(write: Write) -> None:
    quick = {"processes": 1}
    comparison = compare_files(write("a.json", options=quick), write("b.json", 0.5, options=quick))
    assert comparison.targets[0].verdict.reason.startswith("fewer than 3 processes x 9 blocks; would have seen >= ")
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


def costing(what: str, factor: float) -> Callable[[dict[str, Any]], None]:
    def change(result: dict[str, Any]) -> None:
        for target in result["targets"]:
            for process in target["processes"]:
                for phase in {"first_step": ["first_step"], "load": ["open", "load", "data", "prepare"]}.get(what, []):
                    process["phases"][phase] *= factor
                joules = 20.0 * (factor if what == "energy" else 1.0)
                process["energy"] = {"source": "a test", "block_joules": [joules] * 9}

    return change


@pytest.mark.parametrize(
    ("what", "within", "beyond"), [("first_step", 1.2, 1.3), ("load", 1.2, 1.3), ("energy", 1.04, 1.06)]
)
def test_first_step_load_and_energy_are_judged_each_by_its_own(
    write: Write, what: str, within: float, beyond: float
) -> None:
    asked = Asked(what=["first_step", "load", "energy"])
    before = write("a.json", spoil=costing(what, 1.0))
    for factor, verdict in ((within, SAME), (beyond, REGRESSED)):
        after, again = (write(name, spoil=costing(what, factor)) for name in ("b.json", "c.json"))
        found = {(one.what, one.verdict.outcome) for one in compare_files(before, after, [again], asked).targets}
        assert found == {(one, verdict if one == what else SAME) for one in asked.what}


def test_memory_that_grows_is_a_warning(write: Write) -> None:
    a, b = write("a.json"), write("b.json", spoil=put("targets.0.memory.growth_bytes_per_step", 1e5))
    warned = "cpu forward padded auto x8: memory grows by 0.1 MB a step (not before)"
    assert compare_files(a, b, (), Asked(what=["memory"])).warnings == (warned,)
    assert f"warning: {warned}" in run_command(compare, a, b, "--what", "memory", "--format", "markdown").stdout


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
        ("targets.0.torch_compile", "default", "torch_compile"),
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
    assert f"differs: {comparison.differences[0].words()}" in run_command(compare, a, b, "--allow", key).output


@pytest.mark.parametrize(
    ("place", "before", "after", "told", "targets"),
    [
        ("environment.versions.isotrain", "0.0.1", "0.0.2", "isotrain 0.0.1 -> 0.0.2", 2),
        (
            "targets.0.processes.0.environment.before.clock_mhz",
            [2990.0, 3010.0],
            [2000.0, 2400.0],
            "cpu forward padded auto x8: clocks 3000 MHz -> 2200 MHz",
            1,
        ),
    ],
)
def test_what_does_not_decide_speed_is_listed(
    write: Write, place: str, before: object, after: object, told: str, targets: int
) -> None:
    a, b = write("a.json", spoil=put(place, before)), write("b.json", spoil=put(place, after))
    assert [one.words() for one in compare_files(a, b).differences] == [told]
    for shown in ("table", "markdown", "github"):
        assert f"differs: {told}" in run_command(compare, a, b, "--format", shown).stdout
    rows = csv.DictReader(io.StringIO(run_command(compare, a, b, "--format", "csv").stdout))
    assert [row["differs"] for row in rows] == [told] * targets + [""] * (2 - targets)
    suite = ElementTree.fromstring(run_command(compare, a, b, "--format", "junit").stdout)
    assert [one.get("value") for one in suite.iterfind("properties/property[@name='differs']")] == [told]


def test_what_differs_in_the_second_pair_is_listed_too(write: Write) -> None:
    def version(number: str) -> Callable[[dict[str, Any]], None]:
        return put("environment.versions.isotrain", number)

    a, b = write("a.json", spoil=version("0.0.1")), write("b.json", spoil=version("0.0.2"))
    for again, told in (("0.0.2", []), ("0.0.3", ["isotrain 0.0.1 -> 0.0.3"])):
        comparison = compare_files(a, b, [write("c.json", spoil=version(again))])
        assert [one.words() for one in comparison.differences] == ["isotrain 0.0.1 -> 0.0.2", *told]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"options": {"dtypes": ("float32",)}}, "config.dtype differs: 'bfloat16' in"),
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


def test_the_command_compare_ends_in_its_verdict(write: Write) -> None:
    a, b, c = write("a.json"), write("b.json", 0.2), write("c.json", 0.2)
    once = run_command(compare, a, b)
    assert once.exit_code == 3
    assert "one pair of runs confirms no change" in once.output
    assert "of random:tiny (random weights), bfloat16 (computed in float32), Fake CPU" in once.output
    confirmed = run_command(compare, a, b, "--again", c, "--gate", "5%")
    assert confirmed.exit_code == 1
    assert "0.83" in confirmed.output
    for output in (once.output, confirmed.output):
        assert "can't tell a drift of the machine from the code; bench --against can" in " ".join(output.split())
    document = json.loads(run_command(compare, a, b, "--again", c, "--json").stdout)
    assert [target["verdict"] for target in document["targets"]] == ["regression", "regression"]
    assert document["code"] == 1


def test_a_ci_service_gets_the_verdicts_in_its_own_formats(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    a, b, c = write("a.json"), write("b.json", 0.2), write("c.json", 0.2)
    annotated = run_command(compare, a, b, "--again", c, "--format", "github")
    assert annotated.exit_code == 1
    assert annotated.stdout.splitlines()[0].startswith(
        "::error title=regression%3A cpu forward padded auto x8::speed 0.8"
    )
    assert summary.read_text(encoding="utf-8").count("| regression |") == 2
    warned = run_command(compare, a, b, "--format", "github", "--on-undecided", "warn")
    assert (warned.exit_code, warned.stdout.count("::warning ")) == (0, 2)
    passed = run_command(compare, a, write("d.json"), "--format", "github").stdout.splitlines()
    assert passed[0].startswith("::notice title=no regression%3A cpu forward padded auto x8::speed ")
    assert passed[-1].startswith("::notice::isotrain compare: ")
    assert "%0Anote: one pair of runs confirms no change" in passed[-1]

    suite = ElementTree.fromstring(run_command(compare, a, b, "--again", c, "--format", "junit").stdout)
    assert (suite.get("tests"), suite.get("failures")) == ("2", "2")
    names = {case.get("name") for case in suite.iterfind("testcase")}
    assert names == {"cpu forward padded auto x8", "cpu forward packed auto x8"}
    assert all("gate 0.03" in str(failure.get("message")) for failure in suite.iterfind("testcase/failure"))

    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(io.StringIO(run_command(compare, a, b, "--again", c, "--format", "csv").stdout))
    assert frame.verdict.tolist() == ["regression"] * 2
    assert frame.ratio_high.max() < 1


@pytest.mark.parametrize(("slowdown", "again"), [(0.0, False), (0.2, True), (0.2, False)])
@pytest.mark.parametrize("shown", ["table", "csv", "markdown", "github", "junit"])
def test_each_outcome_says_in_each_view_what_would_have_been_seen(
    write: Write, monkeypatch: pytest.MonkeyPatch, shown: str, slowdown: float, again: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    second = ("--again", write("c.json", slowdown)) if again else ()
    result = run_command(compare, write("a.json"), write("b.json", slowdown), *second, "--format", shown)
    assert result.stdout.replace("&gt;", ">").count("would have seen >= 3 %") == 2, result.stdout
