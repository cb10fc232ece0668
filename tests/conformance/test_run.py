"""A run of checks: whatever a backend does to its process is one row, and the next check runs in a new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.albert_core.runs import files
from isotrain.backends import BackendUnavailableError, get_backend
from isotrain.benchmarks.outcome.conformance import Conformance, Judged, Rate, Status
from isotrain.benchmarks.reports.terminal import output_console, print_blocks
from isotrain.cli.commands.conformance import _Progress
from isotrain.conformance import table
from isotrain.conformance.case import Case, Device, Passed
from isotrain.conformance.messages import Opening
from isotrain.conformance.process import LostError, Worker
from isotrain.conformance.run import Suite, Target, choose, run_checks
from isotrain.conformance.worker import judge
from support import forks
from support.command import Invoke, one_line_error

# A worker without torch that does what the names of its checks say.
FAKE = """
import json, os, signal, sys, time
spec = json.loads(sys.stdin.read())
def say(line): os.write(spec["answers"], line.encode() + b"\\n")
say(json.dumps(OPENING))
for line in os.fdopen(spec["requests"]):
    name = line.strip()
    if name == "support":
        say(json.dumps({"support": None, "problem": "it doesn't say"}))
        continue
    what = name.split("/")[1]
    if what == "segfaults":
        print("the driver is on fire", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "leaves": os._exit(0)
    if what == "is-killed": os.kill(os.getpid(), signal.SIGKILL)
    if what == "hangs":
        print("waiting for the card", flush=True)
        time.sleep(600)
    if what == "garbles": os.write(spec["answers"], b"\\xff{]\\n")
    if what == "chatters": os.write(1, b"chatter" * 100)
    if what == "closes":
        os.close(spec["answers"])
        time.sleep(600)
    if what == "long": say(json.dumps({"status": "pass", "detail": "x" * 300000}))
    say(json.dumps({"status": "pass", "share": 0.25, "detail": f"in process {os.getpid()}"}))
"""


def fake(opening: dict[str, str] | None = None) -> tuple[str, ...]:
    """The command of the fake worker; it says first how the backend was opened."""
    said = repr(opening or {"status": "open", "reason": "a fake"})
    return sys.executable, "-S", "-c", FAKE.replace("OPENING", said)


def nothing(device: Device) -> Passed:
    return Passed()


def check(subject: str, **changes: Any) -> Case:
    return Case("device", subject, f"A device {subject}.", nothing, **changes)


@pytest.mark.parametrize(
    ("subject", "status", "detail"),
    [
        ("segfaults", "crash", "the process was killed by signal 11: the driver is on fire"),
        ("leaves", "crash", "the process ended with exit code 0"),
        ("is-killed", "crash", "the process was killed by signal 9"),
        ("hangs", "hang", "the process took longer than 0.5 s: waiting for the card"),
        ("garbles", "crash", "the process answered with what is no result: '�{]'"),
        ("chatters", "pass", "in process"),
        ("long", "pass", "xxx"),
    ],
)
def test_what_happens_to_a_process_is_that_checks_row(subject: str, status: str, detail: str) -> None:
    cases = [check("first"), check(subject, time_limit=0.5 if status == "hang" else 60.0), check("last")]
    first, found, last = run_checks(Target("cpu"), cases, command=fake()).checks
    assert (found.status, found.clause) == (status, f"A device {subject}.")
    assert found.detail.startswith(detail)
    assert first.status == last.status == "pass"
    same = first.detail == last.detail
    assert same == (status == "pass"), "the next check has a new process where this one is lost, and only there"


def flaky(starts: Path, failing: set[int]) -> tuple[str, ...]:
    """The command of a fake worker that can't open the backend in some of its starts, by number."""
    counting = f"starts = open({str(starts)!r}, 'a+'); starts.write('x'); starts.flush(); starts.seek(0)"
    said = f"{{'reason': 'busy', 'status': 'FAIL' if len(starts.read()) in {failing} else 'open'}}"
    return sys.executable, "-S", "-c", f"{counting}\n{FAKE.replace('OPENING', said)}"


@pytest.mark.parametrize(
    ("failing", "status", "found"),
    [
        ({2, 3}, "complete", ["crash", "FAIL", "FAIL", "pass", "pass"]),
        ({2, 3, 4}, "not opened", ["crash", "FAIL", "FAIL", "FAIL"]),
        ({1}, "not opened", ["FAIL"]),
    ],
)
def test_a_device_that_was_open_is_opened_again_a_few_times(
    tmp_path: Path, failing: set[int], status: str, found: list[str]
) -> None:
    cases = [check(subject) for subject in ("leaves", "a", "b", "c", "d")]
    result = run_checks(Target("cpu"), cases, command=flaky(tmp_path / "starts", failing))
    assert (result.status, [one.status for one in result.checks]) == (status, found)
    assert all(one.detail == "the backend can't be opened: busy" for one in result.checks if one.status == "FAIL")


def test_a_closed_pipe_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isotrain.conformance.process.GRACE_SECONDS", 0.2)
    result = run_checks(Target("cpu"), [check("closes"), check("last")], command=fake())
    found, last = result.checks
    assert (found.status, found.detail) == ("crash", "the process closed its pipe")
    assert last.status == "pass"


def test_a_limit_of_the_user_replaces_that_of_the_check() -> None:
    start = time.monotonic()
    (found,) = run_checks(Target("cpu", time_limit=0.3), [check("hangs")], command=fake()).checks
    assert found.detail.startswith("the process took longer than 0.3 s")
    assert time.monotonic() - start < 50


@pytest.mark.parametrize(
    ("opening", "kind", "said"),
    [
        ({"status": "absent", "reason": "no card", "fix": "plug one in"}, BackendUnavailableError, "no card; plug one"),
        ({"status": "refused", "reason": "backend 'cpu:9': a host is one device"}, UserError, "a host is one device"),
    ],
)
def test_what_cant_be_opened_here_is_an_error_of_the_input(
    opening: dict[str, str], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        run_checks(Target("cpu"), [check("first")], command=fake(opening))


def test_a_backend_that_breaks_its_word_is_one_row() -> None:
    opening = {"status": "FAIL", "reason": "raised OSError: no answer (in open)"}
    result = run_checks(Target("cpu"), [check("first"), check("last")], command=fake(opening))
    assert result.status == "not opened"
    (found,) = result.checks
    assert (found.status, found.detail) == ("FAIL", "the backend can't be opened: raised OSError: no answer (in open)")


@pytest.mark.parametrize(
    ("program", "status", "detail"),
    [
        ("import os; os._exit(3)", "crash", "while it opened the backend, the process ended with exit code 3"),
        ("import time; time.sleep(600)", "hang", "while it opened the backend, the process took longer than 0.3 s"),
        (
            "print('no such module')",
            "crash",
            "while it opened the backend, the process ended with exit code 0: no such",
        ),
    ],
)
def test_a_process_that_is_lost_while_it_opens_is_one_row(
    program: str, status: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isotrain.conformance.run.OPEN_SECONDS", 0.3 if status == "hang" else 60.0)
    result = run_checks(Target("cpu"), [check("first"), check("last")], command=(sys.executable, "-S", "-c", program))
    (found,) = result.checks
    assert (result.status, found.status) == ("not opened", status)
    assert found.detail.startswith(detail)


def test_results_are_written_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    seen: list[tuple[str, int]] = []

    def look(_: object) -> None:
        document = json.loads(path.read_text())
        seen.append((document["status"], len(document["checks"])))

    run_checks(Target("cpu"), [check("a"), check("b"), check("c")], found=look, path=path, command=fake())
    assert seen == [("interrupted", 1), ("interrupted", 2), ("complete", 3)]
    whole = table.load_conformance(path)
    assert (whole.status, [one.name for one in whole.checks]) == ("complete", ["device/a", "device/b", "device/c"])
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


@pytest.fixture
def ended_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, type[BaseException]], None]:
    """Ends the parent in a request by an exception."""
    ask = Worker.ask

    def end(stop: str, by: type[BaseException]) -> None:
        def asked(worker: Worker, request: str, *rest: Any) -> Any:
            if request == stop:
                raise by
            return ask(worker, request, *rest)

        monkeypatch.setattr(Worker, "ask", asked)

    return end


@pytest.mark.parametrize(("stop", "found"), [("support", []), ("device/a", []), ("device/b", ["a"])])
def test_an_interruption_keeps_what_was_found(
    stop: str, found: list[str], tmp_path: Path, ended_by: Callable[[str, type[BaseException]], None]
) -> None:
    path = tmp_path / "result.json"
    path.write_text("of an earlier run")
    ended_by(stop, KeyboardInterrupt)
    result = run_checks(Target("cpu"), [check("a"), check("b"), check("c")], path=path, command=fake())
    assert (result.status, [one.subject for one in result.checks]) == ("interrupted", found)
    assert table.load_conformance(path) == result


def test_a_run_that_is_killed_in_its_first_check_leaves_no_earlier_result(
    tmp_path: Path, ended_by: Callable[[str, type[BaseException]], None]
) -> None:
    path = tmp_path / "result.json"
    path.write_text("of an earlier run")
    ended_by("device/a", SystemExit)
    with pytest.raises(SystemExit):
        run_checks(Target("cpu"), [check("a")], path=path, command=fake())
    result = table.load_conformance(path)
    assert (result.status, result.checks) == ("interrupted", [])


def test_a_worker_ends_with_its_parent() -> None:
    with Worker("cpu", {}, 0, fake()) as worker:
        worker.hear(Opening, 60.0)
        process = worker._process
    assert process.poll() is not None


def test_a_lost_worker_says_how() -> None:
    with Worker("cpu", {}, 0, (sys.executable, "-S", "-c", "raise SystemExit(7)")) as worker:
        with pytest.raises(LostError, match="ended with exit code 7"):
            worker.hear(Opening, 60.0)
        with pytest.raises(LostError, match="ended with exit code 7"):
            worker.ask("support", Opening, 60.0)


CASES = [
    check("place-bits"),
    check("linear", dtype="float32"),
    check("linear", dtype="float32", mode="grad"),
    check("linear", dtype="float32", mode="perf"),
]


@pytest.mark.parametrize(
    ("mode", "only", "names"),
    [
        (None, None, ["device/place-bits", "device/linear/float32", "device/linear/float32/grad"]),
        ("grad", None, ["device/linear/float32/grad"]),
        ("perf", "linear", ["device/linear/float32/perf"]),
        (None, "place", ["device/place-bits"]),
        (None, "lin*grad", ["device/linear/float32/grad"]),
        ("test", "device/*/float32", ["device/linear/float32"]),
    ],
)
def test_checks_are_chosen_by_mode_and_name(mode: str | None, only: str | None, names: list[str]) -> None:
    assert [case.name for case in choose(CASES, mode, only)] == names


@pytest.mark.parametrize(
    ("mode", "only", "said"),
    [
        ("tset", None, "--mode 'tset' does not exist; did you mean test?"),
        (None, "liner", "--only 'liner' matches no check of mode test or grad; did you mean linear?"),
        ("perf", "place", "--only 'place' matches no check of mode perf; there are checks of linear"),
    ],
)
def test_a_choice_of_nothing_says_what_there_is(mode: str | None, only: str | None, said: str) -> None:
    with pytest.raises(UserError) as caught:
        choose(CASES, mode, only)
    assert str(caught.value).startswith(said)


def result_of(*subjects: str, backend: str = "cpu") -> Conformance:
    with Suite(Target(backend), fake()) as suite:
        return suite.result([suite.run(check(subject, dtype="float32")) for subject in subjects], len(subjects))


def words(blocks: list[table.Block]) -> str:
    return "\n".join(str(getattr(block, "rows", getattr(block, "text", ""))) for block in blocks)


def test_a_table_says_what_each_check_found() -> None:
    shown = words(table.result_blocks(result_of("linear", "leaves")))
    assert "('device/linear', 'float32', 'pass 25%')" in shown
    assert "('device/leaves', 'float32', 'crash')" in shown
    assert "device/leaves/float32: A device leaves." in shown
    assert "2 checks in " in shown
    assert "1 pass, 1 fail, 0 unsupported" in shown


def test_many_checks_that_lack_the_same_are_one_line() -> None:
    result = result_of("linear")
    lacking = result.checks[0].model_copy(update={"status": "unsupported", "share": None, "detail": "no float16 here"})
    few, many = (result.model_copy(update={"checks": [lacking] * number}) for number in (2, 5))
    assert "device/linear/float32, device/linear/float32: no float16 here" in words(table.result_blocks(few))
    assert "5 checks: no float16 here" in words(table.result_blocks(many))


def test_what_passing_checks_leave_out_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    result = result_of("linear", "leaves")
    whole, partly = result.checks[0], result.checks[0].model_copy(update={"lacks": "kernel native has no float16"})
    assert "leave out" not in words(table.result_blocks(result))
    monkeypatch.setenv("COLUMNS", "80")
    console = output_console()
    with console.capture() as captured:
        print_blocks(table.result_blocks(result.model_copy(update={"checks": [whole, partly]})), console)
    lines = captured.get().splitlines()
    assert lines[-3:-1] == ["what passing checks leave out", "device/linear/float32: kernel native has no float16"]


def test_what_a_pass_leaves_out_and_its_rate_are_in_the_result() -> None:
    rate = Rate(value=0.5, unit="GB/s", share=0.25)
    for passed in (Passed(), Passed(0.5, "words", "no gelu", rate)):
        found = judge(replace(check("linear"), run=lambda _, passed=passed: passed), Device(get_backend("cpu")))
        assert (found.share, found.detail, found.lacks, found.rate) == astuple(passed)
    assert Judged.model_validate_json(found.model_dump_json(exclude_unset=True)) == found


def test_two_results_are_compared_check_by_check() -> None:
    before, after = result_of("linear", "gelu", "leaves"), result_of("linear", "leaves", "tanh", backend="npu")
    shown = words(table.comparison_blocks(before, after))
    assert "('device/gelu/float32', 'pass 25%', 'not run')" in shown
    assert "('device/tanh/float32', 'not run', 'pass 25%')" in shown
    assert "linear" not in shown
    assert "leaves" not in shown
    assert words(table.comparison_blocks(before, before)) == "the same in all 3 checks"


@pytest.mark.parametrize(
    ("changed", "differs"), [({}, False), ({"share": 0.6}, True), ({"share": 0.4}, False), ({"status": "FAIL"}, True)]
)
def test_a_share_differs_if_it_is_twice_as_large(changed: dict[str, object], differs: bool) -> None:
    before = result_of("linear")
    after = before.model_copy(update={"checks": [before.checks[0].model_copy(update=changed)]})
    assert words(table.comparison_blocks(before, after)).startswith("the same") != differs


@pytest.mark.parametrize(("value", "differs"), [(1.2, False), (0.9, False), (1.3, True), (0.7, True)])
def test_a_rate_differs_if_it_is_a_quarter_higher_or_lower(value: float, differs: bool) -> None:
    def timed(value: float) -> Conformance:
        update = {"mode": "perf", "share": None, "rate": Rate(value=value, unit="TFLOP/s")}
        return result.model_copy(update={"checks": [result.checks[0].model_copy(update=update)]})

    result = result_of("linear")
    shown = words(table.comparison_blocks(timed(1.0), timed(value)))
    assert shown.startswith("the same") != differs
    assert (f"'pass 1 TFLOP/s', 'pass {value:g} TFLOP/s'" in shown) == differs


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"schema": "isotrain.bench/2"}, "its schema is 'isotrain.bench/2' instead of isotrain.conformance/1"),
        ({"schema": "isotrain.conformance/1"}, "it lacks created, status"),
    ],
)
def test_another_file_is_no_result(tmp_path: Path, content: dict[str, str], said: str) -> None:
    path = tmp_path / "other.json"
    files.write_json(path, content)
    with pytest.raises(UserError, match=said):
        table.load_conformance(path)


@pytest.mark.parametrize("chosen", [("--only", "device/unknown"), ("--mode", "support")], ids=lambda chosen: chosen[0])
def test_a_kept_result_is_shown_again(invoke: Invoke, tmp_path: Path, chosen: tuple[str, str]) -> None:
    kept = tmp_path / "results" / "c.json"
    code, shown, err = invoke("conformance", "--backend", "cpu", *chosen, "--json", kept)
    assert code == 0, err
    assert invoke("show", kept)[:2] == (0, shown)
    one_line_error(invoke("report", tmp_path), "c.json: its schema 'isotrain.conformance/1' is none of")


def test_wrong_input_is_one_line(invoke: Invoke, tmp_path: Path) -> None:
    one_line_error(invoke("conformance", "--backend", "cud"), "--backend 'cud' does not exist", "did you mean cuda?")
    one_line_error(invoke("conformance", "--backend", "cpu", "--only", "liner"), "matches no check")
    one_line_error(invoke("conformance", "--backend", "cpu", "--mode", "fast"), "--mode 'fast' does not exist")
    one_line_error(invoke("conformance", "--backend", "cpu", "--set", "seed=3"), "only a backend's own options")
    (tmp_path / "file").touch()
    one_line_error(invoke("conformance", "--backend", "cpu", "--json", tmp_path / "file" / "c.json"), "is a file, not")
    one_line_error(invoke("conformance", "--backend", "cpu", "--against", tmp_path / "none.json"), "none.json")
    for option in (("--seed", "-1"), ("--seed", 2**63), ("--time-limit", "0"), ("--time-limit", "nan")):
        one_line_error(invoke("conformance", "--backend", "cpu", *option), f"{option[0]} {option[1]}", "allowed is")
    for flag in ("--only", "--against"):
        words = invoke("conformance", "--backend", "cpu", "--mode", "support", flag, "x")
        one_line_error(words, f"{flag} 'x' is for checks, and --mode support runs none")
    one_line_error(invoke("conformance"), "--backend")


@pytest.mark.slow
def test_pytest_runs_the_same_checks(tmp_path: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        plugin = ["-p", "isotrain.conformance.plugin", "--pyargs", "isotrain.conformance", "-p", "no:cacheprovider"]
        environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return forks.run(["-m", "pytest", *plugin, *options], cwd=tmp_path, env=environment, forking=True)

    kept = ("--conformance-json", "results/a.json")
    done = run("--backend", "tt-emulated", "--set", "tt.math_fidelity=lofi", "--only", "device/unknown", "-v", *kept)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_conformance[device/unknown-dtype] PASSED" in done.stdout
    assert "4 passed" in done.stdout
    result = table.load_conformance(tmp_path / "results" / "a.json")
    assert (result.status, len(result.checks), result.options["tt"]["math_fidelity"]) == ("complete", 4, "lofi")
    done = run("--only", "device/unknown")
    assert done.returncode == 2
    assert "no backend is given; add --backend NAME" in done.stdout
    done = run("--backend", "cpu", "--mode", "support")
    assert done.returncode == 2
    assert "--mode support judges nothing" in done.stdout


def test_the_plugin_adds_no_options_to_other_sessions() -> None:
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = forks.run(["-m", "pytest", "-p", "isotrain.conformance.plugin", "--help"], env=environment)
    assert done.returncode == 0, done.stderr
    assert "--time-limit" not in done.stdout


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        (("hang", "hang", "hang"), "3 checks in a row hang; if the other 3 do, too, they take 2 min;"),
        (("hang", "hang", "hang", "hang"), "the other 3 do"),
        (("hang", "hang", "pass", "hang", "crash"), ""),
    ],
)
def test_how_long_hangs_may_go_on_is_said_once(
    statuses: tuple[Status, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [check(f"check-{number}", time_limit=limit) for number, limit in enumerate((60.0,) * 5 + (7.0,))]
    (found,) = result_of("linear").checks
    progress = _Progress(cases, None)
    for case, status in zip(cases, statuses, strict=False):
        progress(found.model_copy(update={"name": case.name, "status": status}))
    told = [line for line in capsys.readouterr().err.splitlines() if "in a row" in line]
    assert len(told) == bool(said)
    assert said in "".join(told)


def test_doctor_runs_all_checks_of_one_backend(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    from isotrain.conformance import catalogue

    every = [case for case in catalogue.cases() if case.name in ("device/info", "device/unknown-option")]
    monkeypatch.setattr(catalogue, "cases", lambda: every)
    code, out, err = invoke("doctor", "--full", "cpu")
    assert (code, err) == (0, "device: done\n")
    assert "2 checks in" in out
    assert "device/unknown-option: the backend takes no options" in out
    lofi = ("--set", "tt.math_fidelity=lofi")
    code, out, err = invoke("doctor", "--full", "tt-emulated", *lofi, "--json")
    result = Conformance.model_validate_json(out)
    assert (code, len(result.checks), result.options["tt"]["math_fidelity"]) == (0, 2, "lofi"), err
    one_line_error(invoke("doctor", *lofi), "--set is for one device; add --full BACKEND")
