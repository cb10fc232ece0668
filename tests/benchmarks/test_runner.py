"""The parent's side: workers that fail, hang or are interrupted, and a real one from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import isotrain.benchmarks
import jsonschema
import pytest
from isotrain import UserError
from isotrain.benchmarks.bench import FAILED, INVALID, VALID, run_bench
from isotrain.benchmarks.harness.plan import Options, make_plan
from isotrain.benchmarks.harness.runner import run_process, run_workers, worker_environment
from support import forks

FakeWorker = Callable[..., tuple[str, ...]]
OPTIONS = Options(workloads=("forward",), layouts=("padded", "packed"), processes=2, blocks=3)


def saying(message: str, scope: str) -> dict[str, Any]:
    return {"document": {"error": {"message": message, "scope": scope}}, "code": 2}


def test_all_processes_run_in_order_and_the_result_is_written(fake_worker: FakeWorker, tmp_path: Path) -> None:
    outcome = run_bench(OPTIONS, out=tmp_path / "r.json", command=fake_worker())
    assert outcome.code == VALID
    assert outcome.path == tmp_path / "r.json"
    written = json.loads(outcome.path.read_text(encoding="utf-8"))
    assert [entry["status"] for entry in written["targets"]] == ["complete", "complete"]
    assert [len(entry["processes"]) for entry in written["targets"]] == [2, 2]


def test_an_invalid_target_gives_exit_code_1(fake_worker: FakeWorker, document: Callable, tmp_path: Path) -> None:
    acts = {"packed/1": {"document": document(reasons=["2 compilations inside the timed region"])}}
    outcome = run_bench(OPTIONS, out=tmp_path, command=fake_worker(acts))
    assert outcome.code == INVALID
    assert outcome.result.document()["valid"] is False


def test_a_dying_worker_shows_its_last_words_and_the_others_results_are_kept(
    fake_worker: FakeWorker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    acts = {"packed/0": {"code": 3, "print": "Traceback: the device fell off"}}
    outcome = run_bench(OPTIONS, out=tmp_path, command=fake_worker(acts))
    assert outcome.code == FAILED
    padded, packed = outcome.result.document()["targets"]
    assert padded["valid"]
    assert packed["status"] == "failed"
    assert "ended with exit code 3 and left no result" in packed["reasons"][0]
    assert "the device fell off" in packed["reasons"][0]
    assert "FAILED" in capsys.readouterr().err


def test_half_a_result_is_none_and_the_others_are_kept(fake_worker: FakeWorker, tmp_path: Path) -> None:
    acts = {"packed/0": {"document": '{"target": {"lay', "print": "disk full"}}
    outcome = run_bench(OPTIONS, out=tmp_path, command=fake_worker(acts))
    assert outcome.code == FAILED
    padded, packed = outcome.result.document()["targets"]
    assert padded["valid"]
    assert "left half a result" in packed["reasons"][0]
    assert "disk full" in packed["reasons"][0]


def test_a_hanging_worker_is_ended_at_its_time_limit(fake_worker: FakeWorker, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    acts = {"packed/0": {"sleep": 60, "touch": str(alive), "print": "waiting for a lock"}}
    options = replace(OPTIONS, time_limit=1.0)
    start = time.perf_counter_ns()
    outcome = run_bench(options, out=tmp_path / "r.json", command=fake_worker(acts))
    assert (time.perf_counter_ns() - start) / 1e9 < 20
    assert "time limit of 1 s" in outcome.result.document()["targets"][1]["reasons"][0]
    assert "waiting for a lock" in outcome.result.document()["targets"][1]["reasons"][0]
    with pytest.raises(ProcessLookupError):
        os.kill(int(alive.read_text(encoding="utf-8")), 0)


def test_wrong_input_ends_the_run_in_one_line_and_writes_nothing(fake_worker: FakeWorker, tmp_path: Path) -> None:
    starts: list[int] = []

    class Counting:
        def started(self, target: int, process: int) -> None:
            starts.append(target)

        def ended(self, run: object) -> None:
            pass

    command = fake_worker({"default": saying("model 'x' is unknown; allowed are ...", "run")})
    with pytest.raises(UserError, match="model 'x' is unknown; allowed are"):
        run_bench(OPTIONS, out=tmp_path / "out" / "r.json", watcher=Counting(), command=command)
    assert len(starts) == 1
    assert not (tmp_path / "out").exists()


def test_wrong_input_of_one_target_leaves_the_others(fake_worker: FakeWorker, tmp_path: Path) -> None:
    acts = {"packed/0": saying("kernel 'auto' can't", "target"), "packed/1": saying("kernel 'auto' can't", "target")}
    outcome = run_bench(OPTIONS, out=tmp_path, command=fake_worker(acts))
    assert outcome.code == FAILED
    assert [entry["status"] for entry in outcome.result.document()["targets"]] == ["complete", "failed"]


def test_a_target_that_failed_is_not_started_again(fake_worker: FakeWorker) -> None:
    starts: list[tuple[int, int]] = []
    command = fake_worker({"packed/0": {"code": 1}, "packed/1": {"code": 1}})
    runs = list(run_workers(make_plan(OPTIONS), lambda *which: starts.append(which), command))
    assert len([which for which in starts if which[0] == 1]) == 1
    assert len(runs) == 3


def test_a_process_is_told_the_peaks_that_others_measured_on_its_backend(
    fake_worker: FakeWorker, document: Callable, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    options = replace(OPTIONS, backends=("cpu", "tt-emulated"), layouts=("bucketed",))
    command = fake_worker({"default": {"document": document(), "peaks": str(told)}})
    assert len(list(run_workers(make_plan(options), lambda *_: None, command))) == 4
    lines = told.read_text(encoding="utf-8").splitlines()
    assert sorted(lines) == ["cpu 0", "cpu 1", "tt-emulated 0", "tt-emulated 1"]


def test_threads_reach_the_libraries_that_read_them_at_import() -> None:
    assert worker_environment(1)["OMP_NUM_THREADS"] == "1"
    assert worker_environment(None).get("OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("after_one", [True, False])
def test_an_interruption_ends_the_worker_and_keeps_what_is_complete(
    fake_worker: FakeWorker, tmp_path: Path, number: signal.Signals, after_one: bool
) -> None:
    alive, out = tmp_path / "alive", tmp_path / "r.json"
    hang = {"sleep": 60, "touch": str(alive)}
    plan = make_plan(OPTIONS)
    place = plan.order[1] if after_one else plan.order[0]
    command = fake_worker({f"{plan.targets[place[0]].layout}/{place[1]}": hang})
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from isotrain.benchmarks.bench import run_bench\n"
        "from isotrain.benchmarks.harness.plan import Options\n"
        f"options = Options(workloads=('forward',), layouts=('padded', 'packed'), processes=2, blocks=3)\n"
        f"sys.exit(run_bench(options, out=Path({str(out)!r}), command={command!r}).code)\n"
    )
    parent = forks.Popen(["-c", program], stderr=subprocess.PIPE)
    for _ in range(600):
        if alive.exists() and alive.read_text(encoding="utf-8"):
            break
        time.sleep(0.05)
    parent.send_signal(number)
    assert parent.wait(30) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(alive.read_text(encoding="utf-8")), 0)
    assert out.exists() == after_one
    if after_one:
        result = json.loads(out.read_text(encoding="utf-8"))
        assert result["status"] == "partial"
        assert sum(len(entry.get("processes", [])) for entry in result["targets"]) == 1
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


@pytest.mark.parametrize("end", ["os._exit(3)", "time.sleep(600)"])
def test_children_of_a_worker_end_with_it(tmp_path: Path, end: str) -> None:
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    program = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-S', '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        f"print(child.pid, flush=True)\n{end}\n"
    )
    ended = run_process((sys.executable, "-S", "-c", program), None, tmp_path / "log", None, 3.0)
    assert ended.timed_out == ("sleep" in end)
    deadline = time.monotonic() + 10.0
    stat = Path("/proc", (tmp_path / "log").read_text(encoding="utf-8").strip(), "stat")
    while stat.exists() and ") Z " not in stat.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline, "the child is still there"
        time.sleep(0.05)


def test_what_a_killed_run_left_goes_with_the_next_run(
    fake_worker: FakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, temporary = tmp_path / "alive", tmp_path / "temporary"
    temporary.mkdir()
    command = fake_worker({"default": {"sleep": 60, "touch": str(alive)}})
    program = (
        "import tempfile\n"
        "from isotrain.benchmarks.bench import run_bench\n"
        "from isotrain.benchmarks.harness.plan import Options\n"
        f"tempfile.tempdir = {str(temporary)!r}\n"
        f"run_bench(Options(workloads=('forward',), layouts=('packed',)), command={command!r})\n"
    )
    parent = forks.Popen(["-c", program], stderr=subprocess.PIPE, cwd=tmp_path)
    for _ in range(600):
        if alive.exists() and alive.read_text(encoding="utf-8"):
            break
        time.sleep(0.05)
    parent.kill()
    parent.wait(30)
    # This worker does not watch for the end of its parent.
    os.kill(int(alive.read_text(encoding="utf-8")), signal.SIGKILL)
    assert len(list(temporary.iterdir())) == 1
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    run_bench(OPTIONS, out=tmp_path / "r.json", command=fake_worker())
    assert list(temporary.iterdir()) == []


def test_a_real_run_from_end_to_end(tmp_path: Path) -> None:
    """Two layouts of the tiny model in real worker processes: valid figures that fit the published schema."""
    options = Options(
        model="random:tiny",
        workloads=("forward",),
        layouts=("bucketed", "packed"),
        # The native kernel leaves out a bucketed batch's padding.
        kernels=("portable",),
        processes=1,
        blocks=3,
        seconds=0.2,
        threads=1,
        quick=True,
    )
    outcome = run_bench(options, out=tmp_path / "r.json")
    schema = Path(isotrain.benchmarks.__file__).parent / "schema" / "bench-2.json"
    result = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(json.loads(schema.read_text(encoding="utf-8"))).validate(result)
    assert outcome.code == VALID, [entry["reasons"] for entry in result["targets"]]
    for entry in result["targets"]:
        assert entry["model"]["label"] == "random:tiny (random weights)"
        assert entry["processes"][0]["environment"]["threads"]["intra_op"] == 1
        assert 0 < entry["share_of_peak"]["model"] <= entry["share_of_peak"]["hardware"] <= 1
        assert entry["phases"]["import"]["median"] > 0.1
        assert entry["figures"]["samples_per_second"]["low"] > 0
    bucketed, packed = result["targets"]
    assert bucketed["work"]["model_flops"] == packed["work"]["model_flops"]
    assert bucketed["work"]["hardware_flops"] > packed["work"]["hardware_flops"]


@pytest.mark.usefixtures("forked_children")
def test_a_real_worker_refuses_a_wrong_model_in_one_line(tmp_path: Path) -> None:
    options = Options(model="random:huge", layouts=("packed",), workloads=("forward",), processes=1)
    with pytest.raises(UserError, match="'random:huge' is unknown; allowed random architectures are"):
        run_bench(options, out=tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()
