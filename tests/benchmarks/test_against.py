"""`isotrain bench --against`: pairs of workers that take turns, verdicts, refusals, and processes that fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.benchmarks.against import pairs as pairing
from isotrain.benchmarks.against import run as running
from isotrain.benchmarks.against.checkout import Checkout
from isotrain.benchmarks.against.comparison import comparison
from isotrain.benchmarks.against.pairs import PairRun
from isotrain.benchmarks.against.run import Asked, _notes, paired_plan, run_against
from isotrain.benchmarks.bench import PlainWatcher
from isotrain.benchmarks.harness.document import Interval, Measured
from isotrain.benchmarks.harness.environment import PACKAGE_ROOT
from isotrain.benchmarks.harness.plan import Options
from isotrain.benchmarks.harness.runner import WorkerRun
from isotrain.benchmarks.outcome.against import Against, PairedTarget
from isotrain.benchmarks.regression.verdict import IMPROVED, INCONCLUSIVE, REFUSED, REGRESSED, SAME
from isotrain.benchmarks.reports.terminal_comparison import FORMATS
from support.command import Invoke, one_line_error
from support.workloads import write_workload

MakeDocument = Callable[..., dict[str, Any]]

# Plays a worker that takes turns: its blocks take no time, and its document is what the test gives for its side.
SCRIPT = """
import json, os, sys, time
from pathlib import Path
from isotrain.albert_core.processes.parent import end_with_parent
from isotrain.benchmarks.harness.turns import Turns
end_with_parent()
spec = json.load(sys.stdin)
side = Path(os.environ["PYTHONPATH"].split(os.pathsep)[0]).name
act = json.load(open({acts!r}))[side]
journal = open({journal!r}, "a", buffering=1)
def tell(what):
    journal.write(f"{{side}} {{spec['process']}} {{what}}\\n")
tell("loads")
if "refuse" in act:
    Path(spec["result"]).write_text(json.dumps({{"error": {{"message": act["refuse"], "scope": "run"}}}}))
    sys.exit(2)
turns = Turns(spec["turns"])
turns.begin()
tell("warms up")
steps, blocks = turns.agree(act.get("steps", 5), spec["options"]["blocks"])
for block in range(blocks):
    with turns.block():
        tell("block")
        if block == act.get("die_at"):
            print("out of luck", file=sys.stderr, flush=True)
            sys.exit(7)
        time.sleep(act.get("sleep", 0))
turns.finish()
tell("ends")
with open({journal!r} + "-peaks", "a") as peaks:
    peaks.write(f"{{side}} {{len(spec['known_peaks']) + bool(turns.told)}}\\n")
document = act["document"]
document["step_seconds"] = document["step_seconds"][spec["process"]]
document["cpu_step_seconds"] = document["step_seconds"]
document["steps_per_block"] = steps
Path(spec["result"]).write_text(json.dumps(document))
"""


CHECKOUTS = (
    Checkout("before", PACKAGE_ROOT, "unavailable: a test", "a" * 64),
    Checkout("after", PACKAGE_ROOT, "unavailable: a test", "b" * 64),
)


@pytest.fixture(autouse=True)
def _whatever_is_built_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "native_parts", lambda _: [])


@pytest.fixture
def measure(tmp_path: Path, document: MakeDocument, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Against]:
    """`measure(before={...}, after={...})`: what the pairs of such workers give; `slower` multiplies their times."""

    def run(
        before: dict[str, Any] | None = None,
        after: dict[str, Any] | None = None,
        *,
        slower: float = 1.0,
        changes: dict[str, Any] | None = None,
        both: dict[str, Any] | None = None,
        pairs: int = 3,
        blocks: int = 10,
        **options: Any,
    ) -> Against:
        acts = {}
        for side, act in (("before", before or {}), ("after", after or {})):
            factor = slower if side == "after" else 1.0
            # A machine whose speed falls by half during each pair, which sequential runs would take for the code's.
            times = [[factor * (0.5 + 0.05 * block + 0.2 * pair) for block in range(blocks)] for pair in range(pairs)]
            told = document(step_seconds=tuple(times), **((both or {}) | (changes or {} if side == "after" else {})))
            acts[side] = {"document": told} | act
        (tmp_path / "acts.json").write_text(json.dumps(acts), encoding="utf-8")
        script = tmp_path / "worker.py"
        script.write_text(
            SCRIPT.format(acts=str(tmp_path / "acts.json"), journal=str(tmp_path / "journal")), encoding="utf-8"
        )
        monkeypatch.setattr(pairing, "WORKER", (sys.executable, str(script)))
        plan = paired_plan(
            Options(workloads=("forward",), layouts=("packed",), processes=pairs, blocks=blocks, **options)
        )
        out = tmp_path / "against.json"
        result, path = run_against(plan, CHECKOUTS, Asked(0.05, "fail"), PlainWatcher(plan), out=out)
        assert path == out
        assert result == Against.model_validate_json(out.read_text(encoding="utf-8"))
        return result

    return run


def only(result: Against) -> PairedTarget:
    assert len(result.targets) == 1
    return result.targets[0]


@pytest.mark.parametrize(("slower", "verdict"), [(1.0, SAME), (1.2, REGRESSED), (0.8, IMPROVED)])
def test_the_ratio_is_of_blocks_that_met_the_same_machine(
    measure: Callable[..., Against], slower: float, verdict: str
) -> None:
    found = only(measure(slower=slower))
    assert found.verdict == verdict, found.reason
    assert found.time is not None
    assert found.time.median == pytest.approx(slower, rel=1e-6)
    assert found.cpu_time is not None
    assert found.cpu_time.median == pytest.approx(slower, rel=1e-6)
    assert len(found.ratios) == 3
    assert {len(row) for row in found.ratios} == {5}


def test_a_kept_result_is_shown_again(measure: Callable[..., Against], tmp_path: Path, invoke: Invoke) -> None:
    result = measure(slower=1.2)
    code, out, err = invoke("show", tmp_path / "against.json")
    assert code == 0, err
    assert only(result).label in out
    assert REGRESSED in out
    one_line_error(invoke("report", tmp_path), "against.json: its schema 'isotrain.against/1' is none of")
    document = result.document()
    document["targets"] *= 2
    (tmp_path / "against.json").write_text(json.dumps(document), encoding="utf-8")
    one_line_error(invoke("show", tmp_path / "against.json"), "it has other targets than its two sides")


def test_both_are_alive_at_once_and_their_blocks_alternate(measure: Callable[..., Against], tmp_path: Path) -> None:
    result = measure(before={"steps": 3}, pairs=2, blocks=4)
    lines = (tmp_path / "journal").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 * 2 * (3 + 4)
    for pair, (first, second) in enumerate((("before", "after"), ("after", "before"))):
        seen = [line.split(" ", 2)[::2] for line in lines if line.split()[1] == str(pair)]
        assert sorted(seen[:2]) == [["after", "loads"], ["before", "loads"]]
        assert seen[2:4] == [[first, "warms up"], [second, "warms up"]]
        assert [side for side, what in seen[4:-2]] == [first, second, second, first] * 2
        assert seen[-2:] == [[first, "ends"], [second, "ends"]]
    for side in (result.before, result.after):
        # The larger number of steps counts for both.
        assert {process.steps_per_block for process in side.result.measured[0].processes} == {5}


def test_the_second_of_a_pair_is_told_the_peaks_of_the_first(measure: Callable[..., Against], tmp_path: Path) -> None:
    measure(pairs=2, blocks=2)
    told = (tmp_path / "journal-peaks").read_text(encoding="utf-8").splitlines()
    assert told == ["before 0", "after 1", "after 2", "before 3"]


def test_fewer_than_three_pairs_decide_nothing(measure: Callable[..., Against]) -> None:
    found = only(measure(slower=1.5, pairs=2))
    lacking = "fewer than 3 pairs of processes x 10 blocks; would have seen >= 5 %"
    assert (found.verdict, found.reason) == (INCONCLUSIVE, lacking)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": {"sha256": "c" * 64}}, "other weights before (aaaaaaaaaa) and after (cccccccccc)"),
        ({"data": {"sha256": "c" * 64}}, "other texts before (bbbbbbbbbb) and after (cccccccccc)"),
        ({"reasons": ["3 logits of 616 were NaN or infinite"]}, "invalid after: 3 logits of 616 were NaN or infinite"),
    ],
)
def test_another_work_or_an_invalid_one_is_refused(
    measure: Callable[..., Against], document: MakeDocument, changes: dict[str, Any], reason: str
) -> None:
    whole = {key: document()[key] | value if isinstance(value, dict) else value for key, value in changes.items()}
    found = only(measure(changes=whole, slower=0.5))
    assert found.verdict == REFUSED
    assert found.reason.startswith(reason)
    assert found.time is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"data": {"sha256": "c" * 64}}, "other batches before (bbbbbbbbbb) and after (cccccccccc)"),
        ({"model": {"code_sha256": "c" * 64}}, "other module before (dddddddddd) and after (cccccccccc)"),
    ],
)
def test_a_module_of_ones_own_is_the_same_file_for_both(
    measure: Callable[..., Against], document: MakeDocument, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    told = document()
    own = {"model": told["model"] | {"code_sha256": "d" * 64}, "data": told["data"]}
    after = {key: value | changes[key] for key, value in own.items() if key in changes}
    spec = f"{write_workload(tmp_path)}:Line"
    result = measure(both=own, changes=after, module=True, model=spec)
    found = only(result)
    assert found.label == "cpu forward Line"
    assert result.notes == [f"{spec} is the same file for both checkouts, which differ in isotrain alone"]
    assert (found.verdict, found.reason.startswith(reason)) == (REFUSED if changes else SAME, True)


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_process_that_dies_ends_its_partner_and_refuses_the_target(
    measure: Callable[..., Against], tmp_path: Path, side: str
) -> None:
    result = measure(**{side: {"die_at": 2}})
    found = only(result)
    assert found.verdict == REFUSED
    assert result.status == "failed"
    assert found.reason.startswith(f"invalid {side}: a process ended with exit code 7 and left no result")
    assert "out of luck" in found.reason
    assert "ends" not in (tmp_path / "journal").read_text(encoding="utf-8")


def test_what_a_worker_refuses_is_the_error_of_the_command(measure: Callable[..., Against]) -> None:
    with pytest.raises(UserError, match="no such tokenizer"):
        measure(before={"refuse": "no such tokenizer"})


def test_a_pair_is_ended_at_its_time_limit(measure: Callable[..., Against]) -> None:
    start = time.monotonic()
    found = only(measure(after={"sleep": 30}, time_limit=1.0))
    assert time.monotonic() - start < 20
    assert found.verdict == REFUSED
    assert "took longer than the time limit of 2 s for a pair" in found.reason


def test_an_interruption_keeps_the_pairs_that_are_complete(measure: Callable[..., Against], tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.touch()

    ended = threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.01):
            if "before 1 block" in journal.read_text(encoding="utf-8"):
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        result = measure(before={"sleep": 0.02})
    finally:
        ended.set()
        thread.join()
    assert result.status == "partial"
    assert len(only(result).ratios) == 1
    assert only(result).verdict == INCONCLUSIVE


def test_a_result_is_shown_as_a_comparison(measure: Callable[..., Against]) -> None:
    shown = comparison(measure(slower=1.25))
    assert shown.code == 1
    for text in (FORMATS[name](shown) for name in ("markdown", "csv", "github", "junit")):
        assert "regression" in text
        assert "by CPU time 0.800x (0.800 to 0.800); took" in text
    few = measure(pairs=2)
    assert [comparison(few.model_copy(update={"on_undecided": name})).code for name in ("fail", "warn")] == [3, 0]


def test_cpu_time_has_no_figure_where_it_or_wall_time_has_no_result(measure: Callable[..., Against]) -> None:
    result = measure()

    def told(**changes: Any) -> str:
        target = only(result).model_copy(update=changes)
        return comparison(result.model_copy(update={"targets": [target]})).targets[0].verdict.reason

    assert "by CPU time 1.000x" in told()
    assert "by CPU time 0.800x" in told(cpu_time=Interval(median=1.25, low=1.0, high=2.0))
    assert "CPU time" not in told(cpu_time=Interval(median=1.25, low=1.0, high=2.1))
    assert "CPU time" not in told(verdict=INCONCLUSIVE, detectable=None)


def test_no_interval_goes_beyond_the_rate_of_the_unit(measure: Callable[..., Against], document: MakeDocument) -> None:
    """The newer side reaches 95 % of its peak: its noise can't mean that it is a tenth faster than that."""
    told = document()
    peaks = told["peaks"] | {"matmul_tflops": told["work"]["hardware_flops"] / 0.5 / 0.95 / 1e12}
    times = {
        "before": document(step_seconds=([0.5] * 10,) * 3),
        "after": document(step_seconds=tuple([0.5 * factor] * 10 for factor in (0.85, 1.0, 1.15)), peaks=peaks),
    }
    found = only(measure(**{side: {"document": known} for side, known in times.items()})).time
    assert found is not None
    assert found.high > 1.1
    assert (found.low, found.median) == (pytest.approx(0.95), pytest.approx(1.0))


def test_what_disturbed_either_side_is_in_every_view(measure: Callable[..., Against], document: MakeDocument) -> None:
    busy = document()["environment"] | {"contended": True}
    shown = comparison(measure(both={"environment": busy}, changes={"warnings": ["hot"]}))
    assert shown.targets[0].contended
    for told in (
        "before: contended: other work used the CPUs of 3 of 3 processes",
        "after: hot (process 1, 2, 3)",
        "after: contended: other work used the CPUs of 3 of 3 processes",
    ):
        assert told in shown.targets[0].warnings
        assert told in FORMATS["csv"](shown)
        assert f"* warning: cpu forward packed auto x8: {told}\n" in FORMATS["markdown"](shown)
    assert "bench --against can" not in FORMATS["markdown"](shown), "both met the same drift"


def test_a_process_that_keeps_running_beside_the_other_is_said(
    measure: Callable[..., Against], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "_comes_to_rest", lambda _: False)
    assert measure(blocks=10).notes == [
        "cpu forward packed auto x8: after 60 blocks a process went on running while the other was timed"
    ]


def test_what_every_process_of_this_checkout_warns_of_is_said(
    measure: Callable[..., Against], measured: Callable[..., Measured]
) -> None:
    label, here, chance = "cpu forward packed auto x8", "kernel portable ran, for native can't", "a slow start"
    assert measure(changes={"warnings": [here]}).notes == [f"{label}: {here}"]
    plan = paired_plan(Options(workloads=("forward",), layouts=("packed",), processes=2))
    pairs = [
        PairRun(0, pair, 1.0, (None, WorkerRun(0, pair, 1.0, measured(warnings=warnings))))
        for pair, warnings in enumerate(([here, chance], [here]))
    ]
    assert _notes(plan, pairs, [CHECKOUTS[0], CHECKOUTS[1]]) == [f"{label}: {here}"]


def test_a_native_library_that_is_not_built_here_is_said(
    measure: Callable[..., Against], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "native_parts", lambda _: ["cpu", "none"])
    monkeypatch.setattr(running, "library", lambda root, name: root / ("__init__.py" if name == "cpu" else name))
    (note,) = measure().notes
    assert note.startswith("no native library is built here of kernels/none, and none is measured; build: ")


def checkout_of(folder: Path, described: str) -> Checkout:
    """A checkout whose answer to what it would measure is the real one, after `described` was done to it."""
    package = folder / "isotrain"
    for path in PACKAGE_ROOT.iterdir():
        if path.is_dir() or path.suffix == ".py":
            package.mkdir(exist_ok=True)
            (package / path.name).symlink_to(path)
    (package / "benchmarks").unlink()
    shutil.copytree(PACKAGE_ROOT / "benchmarks", package / "benchmarks", ignore=shutil.ignore_patterns("results"))
    side = package / "benchmarks" / "against" / "side.py"
    side.write_text(side.read_text(encoding="utf-8").replace("def describe", f"{described}\n\n\ndef describe"))
    return Checkout("older", package, "unavailable: a test", "c" * 64)


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ("PROTOCOL = 7", "older has another block protocol ('7', here '1')"),
        ("BENCH = 'isotrain.bench/1'", "older has another result schema ('isotrain.bench/1', here "),
        (
            "from types import SimpleNamespace\ndef make_plan(_): return SimpleNamespace(targets=[])",
            "older has another list of targets ('[]', here ",
        ),
        ("Options.config = lambda self: {'model': 'other'}", "older has another config.model"),
        ("raise SystemExit('no such module')", "older doesn't start: no such module"),
        ("from ... import UserError\ndef make_plan(_): raise UserError('no kernel')", "refuses what is to be measured"),
    ],
)
def test_a_checkout_that_measures_something_else_is_refused(tmp_path: Path, described: str, expected: str) -> None:
    here = Checkout("here", PACKAGE_ROOT, "unavailable: a test", "b" * 64)
    with pytest.raises(UserError) as error, pairing.prepared(checkout_of(tmp_path, described), here, Options()):
        pytest.fail("it was prepared")
    assert expected in " ".join(str(error.value).split())
    assert len(str(error.value).splitlines()) == 1
