"""Workers that don't measure: documents as a worker writes them, and a program that hands them out."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isotrain.albert_core.model.encoder import LoadedEncoder, load_encoder
from isotrain.benchmarks.harness.document import Measured
from isotrain.benchmarks.harness.environment import describe
from isotrain.benchmarks.harness.plan import Options, Plan, make_plan
from isotrain.benchmarks.harness.runner import WorkerRun
from isotrain.benchmarks.harness.texts import Texts, embedded_texts
from isotrain.benchmarks.outcome.build import build_result
from isotrain.benchmarks.reports.html.write import write_report
from support.results import end_to_end_run, parity, write_run

BEFORE_STEPS = ("import", "open", "load", "data", "prepare", "reference")
PHASES = (*BEFORE_STEPS, "first_step", "warm_up", "later_compiles", "steady")


@pytest.fixture(autouse=True)
def _quick_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection of all that the tests' process has imported takes longer than most measurements here."""
    collect = gc.collect
    # torch.compile names a generation, too.
    monkeypatch.setattr(gc, "collect", lambda *_: collect(0))


# Plays the worker: looks up what to do for (layout or kernel, process or "sweep") and does it.
SCRIPT = """
import json, os, sys, time
spec = json.load(sys.stdin)
act = json.load(open({acts!r}))
process = "sweep" if spec["candidates"] else spec["process"]
keys = [f"{{spec['target'][name]}}/{{process}}" for name in ("layout", "kernel")]
what = next((act[key] for key in keys if key in act), act["default"])
if spec["candidates"] and what is act["default"]:
    # The later a shape stands, the faster it is.
    shapes = [{{key: one[key] for key in ("layout", "batch_size")}} for one in spec["candidates"]]
    what = {{"document": {{"sweep": [shape | {{"samples_per_second": 10.0 + n}} for n, shape in enumerate(shapes)]}}}}
if "peaks" in what:
    open(what["peaks"], "a").write(f"{{spec['target']['backend']}} {{len(spec['known_peaks'])}}\\n")
if "print" in what:
    print(what["print"], file=sys.stderr, flush=True)
if "touch" in what:
    open(what["touch"], "w").write(str(os.getpid()))
time.sleep(what.get("sleep", 0))
if "document" in what:
    document = what["document"]
    if isinstance(document, str):
        open(spec["result"], "w").write(document)
        sys.exit(0)
    open(spec["result"], "w").write(json.dumps(document))
sys.exit(what.get("code", 0))
"""


def make_document(step_seconds: tuple[float, ...] = (0.5, 0.5, 0.5), **changes: Any) -> dict[str, Any]:
    """What a worker writes, with plausible values."""
    document = {
        "phases": dict.fromkeys(PHASES, 0.25),
        "warm_up": {"steps": 12, "steady": True, "compiles": 0},
        "steps_per_block": 3,
        "step_seconds": list(step_seconds),
        "work": {
            "samples": 8.0,
            "real_tokens": 128.0,
            "padded_tokens": 1024.0,
            "model_flops": 2e10,
            "hardware_flops": 1.6e11,
            "moved_bytes": 2e7,
        },
        "memory": {"peak_bytes": 2**30, "scope": "resident memory of the process"},
        "energy": {"source": "unavailable: a test", "block_joules": []},
        "peaks": {
            "dtype": "float32",
            "matmul_tflops": 1.0,
            "matmul_size": 1024,
            "copy_gbps": 10.0,
            "step_copy_gbps": 20.0,
            "vendor_tflops": None,
            "vendor_gbps": None,
            "seconds": 1.0,
            "contended": False,
        },
        "device": {"backend": "cpu", "device": "cpu", "name": "Fake CPU", "emulated": False},
        "policy": {
            "requested": "bfloat16",
            "param": "bfloat16",
            "compute": "float32",
            "accumulate": "float32",
            "reason": "a test",
            "label": "bfloat16 (computed in float32)",
        },
        "kernel": {"name": "portable", "version": "1", "notes": []},
        "model": {
            "name": "random:tiny",
            "label": "random:tiny (random weights)",
            "random_weights": True,
            "sha256": "a" * 64,
        },
        "data": {
            "name": "banking77-lengths",
            "sha256": "b" * 64,
            "texts": 32,
            "tokens": 516,
            "mean_length": 16.125,
            "max_length": 49,
            "num_labels": 77,
        },
        "probe": {"0": [1.0, 2.0], "1": [3.0, 4.0]},
        "expected": {"0": [1.0, 2.0], "1": [3.0, 4.0]},
        "reasons": [],
        "warnings": [],
        "environment": {
            "threads": {"intra_op": 2, "inter_op": 2},
            "affinity": [0, 1],
            "involuntary_switches_per_second": 0.0,
            "contended": False,
            "before": {"load": [0.0, 0.0, 0.0]},
            "after": {"load": [0.0, 0.0, 0.0]},
        },
    }
    return document | changes


def measured(**changes: Any) -> Measured:
    """The same, as the parent reads it."""
    return Measured.model_validate_json(json.dumps(make_document(**changes)))


@pytest.fixture(name="document")
def _document() -> Callable[..., dict[str, Any]]:
    return make_document


@pytest.fixture(name="measured")
def _measured() -> Callable[..., Measured]:
    return measured


def make_runs(plan: Plan, changes: dict[int, dict[str, Any]] | None = None) -> list[WorkerRun]:
    return [
        WorkerRun(target, process, 12.0, measured(**(changes or {}).get(target, {}))) for target, process in plan.order
    ]


@pytest.fixture
def all_runs() -> Callable[..., list[WorkerRun]]:
    """`all_runs(plan, {target index: changes})`: one complete run a planned process, changed where named."""

    return make_runs


@pytest.fixture
def fake_worker(tmp_path: Path) -> Callable[[dict[str, Any]], tuple[str, ...]]:
    """`fake_worker({"packed/0": {...}})`: a worker command that acts as told, and well by default.

    Acts: document, code, sleep (seconds), print (to stderr), touch (a file that gets its process id), peaks (a file
    that gets its backend and how many measurements of its peaks it was told).
    """

    def make(acts: dict[str, Any] | None = None) -> tuple[str, ...]:
        told = tmp_path / "acts.json"
        told.write_text(json.dumps({"default": {"document": make_document()}} | (acts or {})), encoding="utf-8")
        script = tmp_path / "worker.py"
        script.write_text(SCRIPT.format(acts=str(told)), encoding="utf-8")
        return (sys.executable, str(script))

    return make


@pytest.fixture(name="bench_result")
def _bench_result() -> dict[str, Any]:
    return make_bench_result()


def make_bench_result() -> dict[str, Any]:
    """A result of six targets: the first is invalid, the last ran on an emulated card and has no place under a roof."""
    workloads, layouts = ("forward", "train_step"), ("padded", "packed", "bucketed")
    plan = make_plan(Options(workloads=workloads, layouts=layouts, processes=3, blocks=3))
    emulated = {"backend": "tt", "device": "tt:0", "name": "tt-emulated: wormhole arithmetic", "emulated": True}
    changes: dict[int, dict[str, Any]] = {
        index: {"step_seconds": tuple(0.1 * (index + 1) * factor for factor in (0.95, 1.0, 1.05))} for index in range(6)
    }
    changes[0] |= {"reasons": ["3 compilations inside the timed region"]}
    changes[5] |= {"device": emulated}
    result = build_result(plan, make_runs(plan, changes), describe()).document()
    result["targets"][5] |= {"backend": "tt", "label": "tt train_step bucketed auto x8", "roofline": None}
    result["targets"][5] |= {"emulated": True, "share_of_peak": None}
    for target in result["targets"]:
        # Compilations are a part of the warm-up's 0.25 s.
        target["phases"]["later_compiles"]["median"] = 0.1
    for place, target in enumerate(result["targets"][:5]):
        # The first one's traffic fits a cache, which copies twice as fast as the memory.
        intensity, gbps = 20.0 + 40 * place, 10.0 if place else 20.0
        roof = min(1.0, intensity * gbps / 1e3)
        target["roofline"] = {
            "intensity_flop_per_byte": intensity,
            "roof_tflops": roof,
            "share": target["figures"]["hardware_tflops"]["median"] / roof,
            "bound": "memory" if roof < 1 else "compute",
            "bandwidth_gbps": gbps,
        }
        target["energy"] = {"source": "unavailable: a test", "joules_per_sample": None, "n": 0}
    result["targets"][1]["energy"] |= {"joules_per_sample": {"median": 0.5, "low": 0.4, "high": 0.6}, "n": 9}
    return result


@pytest.fixture(name="results_folder")
def _results_folder(tmp_path: Path) -> Path:
    return write_results(tmp_path / "all results")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of `write_results`, drawn once for the tests of a file that only read it."""
    folder = tmp_path_factory.mktemp("report")
    return write_report(write_results(folder / "all results"), folder / "report.html").page


def write_results(folder: Path) -> Path:
    """One result of each kind, two runs, and three files that no report can use."""
    bench_result = make_bench_result()
    (folder / "deep" / "er").mkdir(parents=True)
    for name, document in (
        ("bench.json", bench_result),
        ("deep/whole.json", end_to_end_run()),
        ("deep/er/parity.json", parity()),
        ("foreign.json", {"name": "somebody's", "version": 1}),
        ("future.json", {"schema": "isotrain.bench/9"}),
    ):
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    (folder / "truncated.json").write_text(json.dumps(bench_result)[:-100], encoding="utf-8")
    write_run(folder / "runs" / "first")
    write_run(folder / "runs" / "second", steps=700, ended=False, emulated=True)
    return folder


@pytest.fixture
def write(all_runs: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
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


@pytest.fixture(scope="module")
def albert() -> LoadedEncoder:
    return load_encoder("random:tiny", 0)


@pytest.fixture(scope="module")
def texts() -> Texts:
    return embedded_texts(16, 64, 30000, 7, seed=3)
