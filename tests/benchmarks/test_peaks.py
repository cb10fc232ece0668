"""The measured peaks, on a device whose speed is known."""

from __future__ import annotations

import pytest
import torch
from isotrain.backends import DeviceInfo
from isotrain.backends.cpu import CpuBackend
from isotrain.benchmarks.harness import peaks as module
from isotrain.benchmarks.harness import worker
from isotrain.benchmarks.harness.document import Peaks
from isotrain.benchmarks.harness.environment import Lost
from isotrain.benchmarks.harness.peaks import measure_peaks
from isotrain.benchmarks.harness.plan import Options, make_plan
from isotrain.benchmarks.harness.turns import Turns
from isotrain.kernels.cpu.library import vectors

MS = 1_000_000


class TimedBackend(CpuBackend):
    """Virtual time: whatever was queued takes 30 ms once it is waited for, the fifth time 10 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.fences = 0

    def synchronize(self, *tensors: torch.Tensor) -> None:
        assert tensors, "a lazy device needs to know what to wait for"
        self.fences += 1
        self.now += (10 if self.fences == 5 else 30) * MS

    def info(self) -> DeviceInfo:
        return DeviceInfo(backend="cpu", device="cpu", name="fake", vendor_peak_tflops=2.5)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> TimedBackend:
    monkeypatch.setattr(module, "PRODUCT_SIZES", (64, 128))
    monkeypatch.setattr(module, "COPY_BYTES", 4096)
    monkeypatch.setattr(module, "lost", lambda: Lost(0, 0.0))
    return TimedBackend()


def test_the_fastest_block_counts(backend: TimedBackend) -> None:
    peaks = measure_peaks(backend, "float32", clock=lambda: backend.now)
    assert peaks.matmul_size == 64
    assert peaks.matmul_tflops == pytest.approx(2 * 64**3 / 10e-3 / 1e12)
    assert peaks.copy_gbps == pytest.approx(2 * 4096 / 30e-3 / 1e9)
    assert (peaks.vendor_tflops, peaks.vendor_gbps) == (2.5, None)


def test_a_peak_that_others_contended_says_so_after_looking_longer(
    backend: TimedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = measure_peaks(backend, "float32", clock=lambda: backend.now)
    switches = iter(range(0, 10**9, 10**5))
    monkeypatch.setattr(module, "lost", lambda: Lost(next(switches), 0.0))
    contended = measure_peaks(backend, "float32", clock=lambda: backend.now)
    assert not calm.contended
    assert contended.contended
    assert contended.seconds > calm.seconds


def test_a_run_measures_its_peaks_once_and_each_size_of_a_steps_copy(
    backend: TimedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAST_COPY_BYTES", 1024)

    def measured(step_bytes: float, *known: Peaks, dtype: str = "float32") -> tuple[Peaks, int]:
        before = backend.fences
        return measure_peaks(backend, dtype, lambda: backend.now, step_bytes, known), backend.fences - before

    first, all_of_it = measured(4096.0)
    again, nothing = measured(4096.0, first)
    assert (again, nothing) == (first, 0)
    other, a_copy = measured(6000.0, first)
    assert (other.step_copy_bytes, other.matmul_tflops) == (3000, first.matmul_tflops)
    assert 0 < a_copy < all_of_it / 2
    assert measured(4096.0, first, dtype="float64")[1] > 2 * a_copy


@pytest.mark.parametrize(
    ("contended", "measured"), [((True,), True), ((True, True, True), False), ((True, False), False)]
)
def test_a_contended_peak_is_measured_again_but_not_for_ever(
    backend: TimedBackend, contended: tuple[bool, ...], measured: bool
) -> None:
    known = measure_peaks(backend, "float32", lambda: backend.now)
    before = backend.fences
    measure_peaks(
        backend, "float32", lambda: backend.now, known=[known.model_copy(update={"contended": it}) for it in contended]
    )
    assert (backend.fences > before) is measured


def test_a_worker_takes_the_peaks_that_its_partner_measured(
    backend: TimedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = measure_peaks(backend, "float32", lambda: backend.now)

    class Told(Turns):
        def finish(self) -> None:
            self.told = known.model_dump_json()

    monkeypatch.setattr(module, "_device_peaks", lambda *_: pytest.fail("they are known"))
    options = Options(
        model="random:tiny", dtypes=("float32",), workloads=("forward",), layouts=("packed",), blocks=2, seconds=0.02
    )
    document = worker.run(options, make_plan(options).targets[0], turns=Told())
    assert document.peaks.matmul_tflops == known.matmul_tflops


def test_the_cpus_own_peak_is_plausible() -> None:
    peaks = measure_peaks(CpuBackend(), "float32")
    assert 1e-4 < peaks.matmul_tflops < 50
    assert 0.1 < peaks.copy_gbps < 5000
    assert (peaks.unit is None) is (vectors() is None)
    if peaks.unit is not None:
        assert (peaks.unit.dtype, peaks.unit.fed_from) == ("float32", "registers")
