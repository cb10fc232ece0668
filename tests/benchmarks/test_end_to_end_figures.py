"""What end-to-end runs come to: their work, judged by torch's own counter on what really runs, and its rates and
limits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import isotrain.kernels.cpu.head
import pytest
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.job import open_job
from isotrain.albert_core.loop.train import train
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.backends import EnergyUse
from isotrain.backends.cpu import CpuBackend
from isotrain.benchmarks.end_to_end.blacksmith_loop import WARM_UP_STEPS, measure_loop
from isotrain.benchmarks.end_to_end.figures import with_figures
from isotrain.benchmarks.end_to_end.specs import CountSpec
from isotrain.benchmarks.end_to_end.work import count, loop_work
from isotrain.benchmarks.outcome.end_to_end import Counted, Side, TimedLoop
from support.loop_spec import loop_spec
from support.results import end_to_end_side, timed_loop, whole_process
from support.small_job import settings, write_dataset
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

EPOCHS = 3
TRAIN, TEST = 90, 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "intents", TRAIN, TEST)


@pytest.fixture
def without_the_fused_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is trained by torch's operators, which are all that its counter knows."""
    monkeypatch.setattr(isotrain.kernels.cpu.head, "head_step_unsupported", lambda *_: "a test")


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def spec_of(run: Path) -> CountSpec:
    return CountSpec(run=str(run), loops=[], dtype="float32", threads=None, result="")


@pytest.mark.parametrize(
    ("kernel", "layout"), [("transformers", "padded"), ("portable", "bucketed"), ("portable", "packed")]
)
def test_a_runs_hardware_flops_are_those_that_torch_counts(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_the_fused_step: None,
    kernel: str,
    layout: str,
) -> None:
    monkeypatch.setenv("ISOTRAIN_CACHE", str(tmp_path / "cache"))
    sets = settings(data, tmp_path, kernel=kernel, layout=layout, num_epochs=EPOCHS)
    with counting() as counter:
        result = train(load_config(None, sets))
    counted = count(spec_of(result.run.path))
    assert counted.work.hardware_flops == counter.get_total_flops()
    assert counted.kernel.name == kernel
    assert counted.peaks.matmul_tflops > 0


def test_tokens_are_counted_as_often_as_they_are_read_and_as_often_as_they_are_computed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOTRAIN_CACHE", str(tmp_path / "cache"))
    padded = settings(data, tmp_path, kernel="portable", layout="padded", num_epochs=EPOCHS, max_length=32)
    config = load_config(None, padded)
    work = count(spec_of(train(config).run.path)).work
    job = open_job(config.config)
    real = job.train_tokens.num_tokens + job.test_tokens.num_tokens
    assert work.samples == EPOCHS * (TRAIN + TEST)
    assert work.real_tokens == EPOCHS * real
    assert work.padded_tokens == 32 * (TRAIN + TEST), "features are computed once"
    assert work.model_flops < work.hardware_flops


@pytest.mark.parametrize("padding", ["padded", "dynamic"])
def test_a_loops_flops_are_those_that_torch_counts(data: Path, padding: str) -> None:
    # With the warm-up, all of an epoch.
    spec = loop_spec(data, padding=padding, steps=TRAIN // 8 - WARM_UP_STEPS, validation_batches=TEST // 8)
    with counting() as counter:
        document = measure_loop(spec)
    # Each batch once: those of the warm-up are as long as the timed ones in one case alone.
    document = document.model_copy(update={"steps_per_epoch": spec.steps})
    config = load_encoder("random:tiny", 0).weights.config
    run = load_config(None, ["num_epochs=1"]).config
    work = loop_work(config, (config.hidden_size, 16, 6), [document], run, "float32")
    pooler = 2 * config.hidden_size**2 * 8 * (TRAIN // 8 + TEST // 8)
    assert work.samples == 8 * (spec.steps + TEST // 8)
    if padding == "padded":
        warm_up = WARM_UP_STEPS * _step_flops(document, config)
        assert work.hardware_flops + warm_up == pytest.approx(counter.get_total_flops() - pooler, rel=1e-12)
        assert work.padded_tokens == 32 * work.samples
    else:
        assert work.hardware_flops < counter.get_total_flops() - pooler
        assert work.real_tokens < work.padded_tokens < 32 * work.samples


def _step_flops(document: TimedLoop, config: Any) -> float:
    run = load_config(None, ["num_epochs=1"]).config
    alone = {"steps_per_epoch": 1, "step_batches": document.step_batches[:1], "validation_batches": []}
    one = document.model_copy(update=alone)
    return loop_work(config, (config.hidden_size, 16, 6), [one], run, "float32").hardware_flops


def test_a_summary_has_the_joules_since_its_device_was_opened(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joules = iter(range(100, 10_000, 5))
    read: list[int] = []

    def energy(_: CpuBackend) -> EnergyUse:
        read.append(next(joules))
        return EnergyUse(float(read[-1]), "a counter")

    monkeypatch.setattr(CpuBackend, "energy", energy)
    result = train(load_config(None, settings(data, tmp_path, num_epochs=1)))
    summary = json.loads(result.run.summary.read_text(encoding="utf-8"))
    assert summary["energy"] == {"joules": float(read[-1] - 100), "source": "a counter"}
    assert len(read) > 3, "a counter that wraps is read in between"


def work(**changes: float) -> dict[str, float]:
    return {
        "samples": 1000.0,
        "real_tokens": 12_000.0,
        "padded_tokens": 8_000.0,
        "model_flops": 2e12,
        "hardware_flops": 4e12,
        "moved_bytes": 1e9,
    } | changes


def counted(emulated: bool = False) -> Counted:
    known = {"dtype": "float32", "matmul_tflops": 0.5, "matmul_size": 512, "copy_gbps": 10.0, "step_copy_gbps": 10.0}
    policy = dict.fromkeys(("requested", "param", "compute", "accumulate", "reason", "label"), "float32")
    return Counted.model_validate(
        {
            "work": work(),
            "loops": [work(hardware_flops=4e13)],
            "peaks": known
            | {"vendor_tflops": None, "vendor_gbps": None, "seconds": 1.0, "unit": None, "contended": False},
            "device": {"backend": "cpu", "device": "cpu", "name": "a device", "emulated": emulated},
            "policy": policy,
            "kernel": {"name": "portable", "version": "1"},
        }
    )


def side(seconds: float, extrapolated: bool = False, joules: tuple[float | None, ...] = (50.0, 60.0)) -> Side:
    told = [{"joules": one, "source": "unavailable: why" if one is None else "a counter"} for one in joules]
    processes = [timed_loop()] if extrapolated else [whole_process(energy=energy) for energy in told]
    interval = {"median": seconds, "low": 0.5 * seconds, "high": 2 * seconds}
    return Side.model_validate(end_to_end_side(*processes, name="a side", extrapolated=extrapolated, seconds=interval))


def figures(*sides: Side, emulated: bool = False) -> list[dict[str, Any]]:
    return [side.document() for side in with_figures(list(sides), counted(emulated), seed=0)]


def test_rates_are_work_over_seconds_and_share_their_interval() -> None:
    own, loop = figures(side(20.0), side(400.0, extrapolated=True))
    assert own["figures"]["samples_per_second"] == {"median": 50.0, "low": 25.0, "high": 100.0}
    assert own["figures"]["real_tokens_per_second"]["median"] == 600.0
    assert own["figures"]["padded_tokens_per_second"]["median"] == 400.0
    assert own["figures"]["model_tflops"]["median"] == pytest.approx(0.1)
    assert own["share_of_peak"] == {"model": pytest.approx(0.2), "hardware": pytest.approx(0.4)}
    assert own["roofline"]["bound"] == "compute"
    assert loop["figures"]["hardware_tflops"]["median"] == pytest.approx(0.1)
    assert own["valid"]
    assert loop["valid"]


def test_energy_is_a_texts_share_of_what_the_runs_used() -> None:
    own, loop = figures(side(20.0), side(400.0, extrapolated=True))
    assert own["energy"]["joules_per_sample"]["median"] == pytest.approx(0.055)
    assert own["energy"]["n"] == 2
    assert loop["energy"]["source"] == "unavailable: only a part of the run was run"


@pytest.mark.parametrize(
    ("joules", "source"),
    [((None, None), "unavailable: why"), ((5.0, 0.0), "unavailable: the counter stood still during a run")],
)
def test_without_joules_of_every_run_there_is_a_reason(joules: tuple[float | None, ...], source: str) -> None:
    (own,) = figures(side(20.0, joules=joules))
    assert own["energy"] == {"source": source, "joules_per_sample": None, "n": 0}


def test_a_run_faster_than_its_device_is_no_result() -> None:
    (own,) = figures(side(2.0))
    assert not own["valid"]
    assert "more than the measured peak" in own["reasons"][0]


def test_an_emulated_device_has_rates_and_no_share_of_a_peak() -> None:
    (own,) = figures(side(20.0), emulated=True)
    assert own["share_of_peak"] is None
    assert own["roofline"] is None
    assert own["figures"]["samples_per_second"]["median"] == 50.0


def test_a_side_without_a_process_stays_without_figures() -> None:
    dead = Side.model_validate(end_to_end_side(name="dead", valid=False, reasons=["it died"]))
    stays, loop = figures(dead, side(400.0, extrapolated=True))
    assert "figures" not in stays
    assert loop["figures"]["samples_per_second"]["median"] == 2.5
