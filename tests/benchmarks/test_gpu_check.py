"""The check of a GPU, small and on the host: what it measures, and what is left when a part fails or is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.backends import get_backend
from isotrain.backends.cpu import CpuBackend
from isotrain.benchmarks.gpu_check import operators, throughput
from isotrain.benchmarks.gpu_check.inputs import TINY, Inputs
from isotrain.benchmarks.gpu_check.result import GpuCheck, Operators, Throughput
from isotrain.benchmarks.gpu_check.run import RESULT, run_check
from isotrain.benchmarks.gpu_check.stages import Asked, stages
from support.command import Invoke, one_line_error
from support.forks import Popen

# --- throughput and operators


class Kept(list[Any]):
    """The results that a measurement has kept, as their files have them."""

    def __call__(self, found: Any) -> None:
        self.append(type(found).model_validate(json.loads(json.dumps(found.document()))))


@pytest.fixture(scope="module")
def measured() -> tuple[Throughput, Kept]:
    kept = Kept()
    return throughput.measure_throughput(Inputs(get_backend("cpu"), TINY), False, kept), kept


def test_every_contender_did_the_same_work(measured: tuple[Throughput, Kept]) -> None:
    result, kept = measured
    assert [problem for problem in result.problems if "measured peak" not in problem] == []
    assert list(result.contenders) == [
        "ours, portable",
        "ours, auto, copied from the host",
        "ours, auto",
        "transformers, padded to 64, eager",
        "transformers, sorted by length, eager",
    ]
    for row in result.contenders.values():
        assert len(row.samples) == TINY.rounds
        assert row.share_of_peak == pytest.approx(row.model_tflops / result.peaks.compute_limit)
        assert row.texts_per_second == pytest.approx(40 / row.seconds.median)
    for name, ratio in result.speedup_of_ours.items():
        ours = result.contenders["ours, auto"].seconds.median
        assert ratio.median == pytest.approx(result.contenders[name].seconds.median / ours)
    assert [len(found.contenders["ours, auto"].samples) for found in kept] == [1, 2, 3], "kept after every round"
    assert kept[-1] == result


def test_the_figures_say_what_was_to_be_reached(measured: tuple[Throughput, Kept]) -> None:
    result, _ = measured
    figures = {figure.name: figure for figure in result.figures()}
    assert [(figure.least, figure.aim) for figure in figures.values()] == [(0.5, 0.6), (8, 15), (1.4, 2)]
    share = figures["share of the peak"]
    assert share.value == result.contenders["ours, auto"].share_of_peak
    assert share.line().endswith("NOT reached")
    for value, verdict in ((0.49, "NOT reached"), (0.5, "reached"), (0.6, "aim reached")):
        assert share.model_copy(update={"value": value}).line().endswith(f": {verdict}")


def test_a_contender_that_fails_loses_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(throughput, "TransformersEncoder", no_memory)
    result = throughput.measure_throughput(Inputs(get_backend("cpu"), replace(TINY, rounds=1)), False, Kept())
    assert list(result.contenders) == ["ours, portable", "ours, auto, copied from the host", "ours, auto"]
    assert len(result.failed) == 2
    assert all("CUDA out of memory" in reason for reason in result.failed.values())
    assert result.problems == []


class WrongBackend(CpuBackend):
    """Features a fifth off, as a bad kernel would give."""

    def frozen_encoder(self, weights: Any, policy: Any, kernel: str = "auto") -> Any:
        encoder = super().frozen_encoder(weights, policy, kernel)
        return encoder if kernel != "auto" else lambda batch: encoder(batch) * 1.2


def test_a_wrong_kernel_is_a_problem() -> None:
    result = throughput.measure_throughput(Inputs(WrongBackend(), replace(TINY, rounds=1)), False, Kept())
    assert "ours, auto: features differ from those of ours, portable by 20.0%" in result.problems


def test_operators_are_compared_and_a_failing_one_loses_only_itself(
    triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> dict[str, Any]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(operators, "_products", fails)
    kept = Kept()
    result = operators.time_operators(Inputs(get_backend("cpu"), replace(TINY, rounds=1)), False, kept)
    assert list(result.operators) == [
        "attention",
        "residual and LayerNorm",
        "bias and activation",
        "matrix products",
        "forward of 8 texts",
        "head step of 8 texts",
    ]
    assert [len(found.operators) for found in kept] == [1, 2, 3, 4, 5, 6]
    failed = result.operators.pop("matrix products")
    assert (failed.fastest, list(failed.seconds)) == ("", ["all ways"])
    assert "illegal memory access" in str(failed.seconds["all ways"])
    for name, part in result.operators.items():
        assert part.fastest, name
        assert isinstance(part.seconds[part.fastest], float)
    if not torch.cuda.is_available():
        assert str(result.operators["attention"].seconds["flash"]).startswith("unavailable: ")
    assert operators.fastest({"a": 2.0, "b": 1.0, "c": "unavailable: no"}) == "b"
    assert Operators.model_validate(kept[-1]).lines()


# --- the stages, with processes that only pretend

# What each process does: it reads its orders from a file, by stage.
PRETENDER = """
import json, os, pathlib, signal, sys, time
orders, results = json.loads(pathlib.Path(os.environ["ORDERS"]).read_text())
given = sys.stdin.read()
spec = json.loads(given) if given else {"result": "", "what": sys.argv[1]}
folder = pathlib.Path(spec["result"]).parent.name or {"conformance": "correctness", "parity": "parity"}.get(
    sys.argv[1], "training")
with open(os.environ["ORDERS"] + ".log", "a") as log:
    log.write(folder + "\\n")
order = orders.get(folder, "")
if order == "hang":
    print("still compiling", flush=True)
    time.sleep(20)
if order == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if order == "interrupt":
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(20)
if order == "fail":
    sys.exit("RuntimeError: CUDA error: unspecified launch failure")
result = {"error": {"message": order[8:], "scope": "target"}} if order.startswith("refused ") else results[spec["what"]]
if spec["result"]:
    pathlib.Path(spec["result"]).write_text(json.dumps(result))
sys.exit(2 if order.startswith("refused ") else 0)
"""
PROCESS = (sys.executable, "-S", "-c", PRETENDER)
NAMES = [stage.name for stage in stages(Asked())]


@pytest.fixture
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: tuple[Throughput, Kept]) -> Any:
    """orders(stage=order): what the processes of stages do. Without an order they end well."""
    file = tmp_path / "orders"
    monkeypatch.setenv("ORDERS", str(file))
    result, _ = measured
    device = {"backend": "cpu", "device": "cpu", "name": "NVIDIA H200", "emulated": False}
    results = {
        "peaks": {"device": device, "peaks": result.peaks.document(), "environment": {}},
        "throughput": result.document(),
        "operators": {"operators": {}},
        **{name: {} for name in ("conformance", "train", "bench", "parity")},
    }

    def give(name: str = "NVIDIA H200", **asked: str) -> None:
        device["name"] = name
        file.write_text(json.dumps([asked, results]))
        Path(f"{file}.log").write_text("")

    give()
    return give


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked("cpu", tmp_path / "out", seconds=100.0, reference=tmp_path, tiny=True)


def states(asked: Asked) -> dict[str, str]:
    """The stages that the file of results has, and how they ended."""
    found = GpuCheck.model_validate_json((asked.out / RESULT).read_bytes())
    return {stage.name: stage.status for stage in found.stages}


def ran(tmp_path: Path) -> list[str]:
    return list(dict.fromkeys((tmp_path / "orders.log").read_text().split()))


def test_stages_run_in_their_order_and_leave_a_file_each(orders: Any, asked: Asked, tmp_path: Path) -> None:
    lines: list[str] = []
    result = run_check(asked, lines.append, PROCESS)
    assert result.passed
    assert states(asked) == dict.fromkeys(NAMES, "passed")
    assert NAMES[0] == "peaks"
    assert NAMES[-1] == "compiled", "what takes longest is last"
    assert ran(tmp_path) == NAMES
    assert result.device is not None
    assert result.device.name == "NVIDIA H200"
    assert [figure.name for figure in result.figures].count("share of the peak") == 2
    assert any(line.startswith("throughput: passed") for line in lines)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("fail", "ended with exit code 1: RuntimeError: CUDA error: unspecified launch failure"),
        ("die", "was killed by signal 9"),
        ("refused no memory; close other programs", "no memory; close other programs"),
    ],
)
@pytest.mark.parametrize("stage", ["throughput", "operators"])
def test_a_stage_that_fails_is_one_line_and_the_rest_is_kept(
    stage: str, order: str, said: str, orders: Any, asked: Asked
) -> None:
    orders(**{stage: order})
    lines: list[str] = []
    result = run_check(asked, lines.append, PROCESS)
    assert not result.passed
    assert states(asked) == dict.fromkeys(NAMES, "passed") | {stage: "failed"}
    (line,) = [line for line in lines if line.startswith(f"{stage}: ")]
    assert said in line
    assert "\n" not in line


def test_a_stage_ends_at_its_share_of_the_seconds(orders: Any, asked: Asked) -> None:
    orders(operators="hang")
    began = time.monotonic()
    run_check(replace(asked, seconds=40.0), lambda _: None, PROCESS)
    assert states(asked) == dict.fromkeys(NAMES, "passed") | {"operators": "out of time"}
    found = GpuCheck.model_validate_json((asked.out / RESULT).read_bytes())
    (stage,) = [stage for stage in found.stages if stage.name == "operators"]
    assert stage.detail == "ended at its limit of 6 s: still compiling"
    assert time.monotonic() - began < 40


def test_without_time_nothing_begins_and_the_line_says_how_to_go_on(orders: Any, asked: Asked, tmp_path: Path) -> None:
    lines: list[str] = []
    run_check(replace(asked, seconds=4.0), lines.append, PROCESS)
    assert set(states(asked).values()) == {"out of time"}
    assert ran(tmp_path) == []
    assert f"gpu-check --backend cpu --out {asked.out} --reference {tmp_path} --tiny" in lines[0]


def test_the_same_command_goes_on_with_what_has_not_passed(orders: Any, asked: Asked, tmp_path: Path) -> None:
    orders(throughput="fail", parity="die")
    run_check(asked, lambda _: None, PROCESS)
    orders()
    assert run_check(asked, lambda _: None, PROCESS).passed
    assert ran(tmp_path) == ["peaks", "throughput", "parity"]


def test_an_interruption_keeps_what_is_done_and_says_how_to_go_on(orders: Any, asked: Asked) -> None:
    orders(throughput="interrupt")
    with pytest.raises(KeyboardInterrupt, match=r"continue with: .*gpu-check --backend cpu --out"):
        run_check(asked, lambda _: None, PROCESS)
    assert states(asked) == {"peaks": "passed", "correctness": "passed", "throughput": "unfinished"}


KILLED = """
import sys
from pathlib import Path
from isotrain.benchmarks.gpu_check.run import run_check
from isotrain.benchmarks.gpu_check.stages import Asked
run_check(Asked("cpu", Path(sys.argv[1]), 100.0, Path(sys.argv[1]), True), print, tuple(sys.argv[2:]))
"""


@pytest.mark.parametrize("stage", NAMES)
def test_a_check_that_is_killed_in_a_stage_keeps_the_others(
    stage: str, orders: Any, asked: Asked, tmp_path: Path
) -> None:
    orders(**{stage: "hang"})
    with Popen(["-c", KILLED, str(asked.out), *PROCESS], stdout=subprocess.DEVNULL) as check:
        deadline = time.monotonic() + 60
        while stage not in (tmp_path / "orders.log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        check.send_signal(signal.SIGKILL)
    done = NAMES[: NAMES.index(stage)]
    assert states(asked) == dict.fromkeys(done, "passed") | {stage: "unfinished"}
    orders()
    assert run_check(asked, lambda _: None, PROCESS).passed
    assert ran(tmp_path) == ["peaks", *(name for name in NAMES[1:] if name not in done)]


def test_a_check_that_is_killed_at_any_moment_loses_no_stage_that_has_passed(
    orders: Any, asked: Asked, tmp_path: Path
) -> None:
    random = Random(7)
    passed: set[str] = set()
    for _ in range(8):
        with Popen(["-c", KILLED, str(asked.out), *PROCESS], stdout=subprocess.DEVNULL) as check:
            time.sleep(random.uniform(0.1, 0.6))
            check.send_signal(signal.SIGKILL)
        now = states(asked) if (asked.out / RESULT).is_file() else {}
        # The device is looked at anew each time.
        assert passed - {"peaks"} <= {name for name, status in now.items() if status == "passed"}
        passed = {name for name, status in now.items() if status == "passed"}
        for name in passed & {"peaks", "throughput", "operators"}:
            assert json.loads((asked.out / name / f"{name}.json").read_text())
    orders()
    assert run_check(asked, lambda _: None, PROCESS).passed
    assert passed.isdisjoint(set(ran(tmp_path)) - {"peaks"})


def test_without_a_reference_parity_is_left_out_and_says_so(orders: Any, asked: Asked) -> None:
    result = run_check(replace(asked, reference=None), lambda _: None, PROCESS)
    assert result.passed
    assert states(asked)["parity"] == "skipped"


def test_results_of_another_device_are_not_mixed(orders: Any, asked: Asked) -> None:
    orders(throughput="fail")
    run_check(asked, lambda _: None, PROCESS)
    orders("NVIDIA H100 80GB HBM3")
    with pytest.raises(UserError, match="results of NVIDIA H200, and this is NVIDIA H100 80GB HBM3; give another"):
        run_check(asked, lambda _: None, PROCESS)
    with pytest.raises(UserError, match="has a dry run of cpu; give another folder"):
        run_check(replace(asked, tiny=False), lambda _: None, PROCESS)
    (asked.out / RESULT).write_text("{")
    with pytest.raises(UserError, match="is no result of gpu-check; give another --out"):
        run_check(asked, lambda _: None, PROCESS)


def test_a_device_that_is_not_there_ends_it_in_one_line(orders: Any, asked: Asked, tmp_path: Path) -> None:
    orders(peaks="refused backend 'cuda' can't run here: no GPU; buy one")
    with pytest.raises(UserError, match=r"^backend 'cuda' can't run here: no GPU; buy one$"):
        run_check(asked, lambda _: None, PROCESS)
    assert ran(tmp_path) == ["peaks"]
    assert states(asked) == {"peaks": "failed"}


# --- the command


@pytest.mark.usefixtures("forked_children")
def test_without_a_gpu_it_ends_in_one_line_and_2(invoke: Invoke) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    one_line_error(invoke("gpu-check", "--out", "found"), "backend 'cuda' can't run here: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--seconds", "0"), "--seconds"),
        (("--reference", "nowhere"), "is no trace"),
        (("--python", "3.12"), "is for --bundle DIR"),
        (("--bundle", "new", "--python", "three"), "is no version of Python"),
        (("--bundle", "."), "exists; give a new folder"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(arguments: tuple[str, ...], said: str, invoke: Invoke) -> None:
    one_line_error(invoke("gpu-check", *arguments), said)
