"""The group "rates": what is timed, and the measurements that are refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from isotrain import UserError
from isotrain.backends import Availability, CastPolicy, FrozenEncoder, get_backend
from isotrain.backends.cpu import CpuBackend
from isotrain.benchmarks.harness.document import Peaks
from isotrain.benchmarks.harness.measure import Budget, Measurement, WarmUp
from isotrain.conformance import rates
from isotrain.conformance.case import Case, Device, UnsupportedError, ViolationError
from isotrain.kernels.packed import PackedBatch, PaddedBatch
from isotrain.kernels.weights import EncoderWeights
from support.mutated_training import Wrapped

CASES = {case.name: case for case in rates.cases()}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small work, short blocks, and peaks that nobody measures."""
    budget = Budget(blocks=2, seconds=0.02, warmup_seconds=0.01)
    monkeypatch.setattr(rates, "BUDGET", budget)
    monkeypatch.setattr(rates, "STEP_BUDGET", budget)
    monkeypatch.setattr(rates, "MODEL", "random:tiny")
    peaks = Peaks.model_construct(matmul_tflops=2.0, copy_gbps=10.0)
    monkeypatch.setattr(rates, "_peaks", lambda *_: peaks)
    yield
    rates._training.cache_clear()


def small(name: str) -> Case:
    """The case of a small matrix product instead of the operation's real size."""
    timed = replace(rates.OPERATIONS[0], shapes=((64, 64), (64, 64)), flops=2 * 64**3)
    dtype = name.split("/")[1]
    return replace(CASES[f"rates/{name}/perf"], run=lambda device: rates._operation_rate(timed, dtype, device))


def test_the_rows_have_names_of_their_own() -> None:
    assert len(CASES) == len(rates.cases())
    assert all(case.mode == "perf" and case.group == "rates" for case in CASES.values())


@pytest.mark.parametrize("timed", rates.OPERATIONS, ids=lambda timed: timed.name)
def test_every_operation_runs_on_its_inputs(timed: rates.Timed) -> None:
    tokens = rates.TOKENS
    result = timed.run(*timed.inputs(torch.Generator().manual_seed(0), torch.float32))
    assert bool(torch.isfinite(result).all())
    assert timed.name == "cross_entropy" or result.numel() >= tokens


def test_a_rate_names_its_share_of_the_measured_peak() -> None:
    found = small("matmul/float32").run(Device(get_backend("cpu")))
    rate, unit, share, *_ = found.detail.split()
    assert unit == "TFLOP/s,"
    assert share == f"{float(rate) / 2.0:.0%}"
    assert "of the measured 2; " in found.detail
    assert found.rate is not None
    assert (f"{found.rate.value:.3g}", found.rate.unit, found.rate.share) == (rate, "TFLOP/s", found.rate.value / 2.0)


def test_an_emulated_device_has_no_peak() -> None:
    found = small("matmul/float32").run(Device(get_backend("tt-emulated")))
    assert "no peak on tt-emulated" in found.detail
    assert "%" not in found.detail
    assert found.rate is not None
    assert found.rate.share is None


@pytest.mark.parametrize("part", ["forward", "backward", "clip", "optimizer", "sgd", "step", "head-step"])
def test_the_parts_of_a_step_are_timed(part: str) -> None:
    found = CASES[f"rates/{part}/float32/perf"].run(Device(get_backend("cpu")))
    unit = "GB/s" if part in ("clip", "optimizer", "sgd") else "TFLOP/s"
    assert unit in found.detail
    assert found.rate is not None
    assert found.rate.unit == unit


class PaddedOnly(Wrapped):
    def seen(self, batch: PackedBatch | PaddedBatch) -> PackedBatch | PaddedBatch:
        if isinstance(batch, PackedBatch):
            raise UserError("kernel compile takes padded batches only")
        return batch


class FewKernels(CpuBackend):
    """A host whose kernel "compile" compiles nothing and takes neither packed batches nor bfloat16."""

    def kernels(self) -> dict[str, Availability]:
        return {name: state for name, state in super().kernels().items() if name in ("portable", "compile")}

    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> FrozenEncoder:
        encoder = super().build_encoder(weights, policy, "portable")
        if kernel != "compile":
            return encoder
        if policy.compute == "bfloat16":
            raise UserError("kernel compile has no bfloat16")
        return PaddedOnly(encoder)


def test_each_kernel_of_a_frozen_encoder_is_timed() -> None:
    found = CASES["rates/frozen-forward/float32/perf"].run(Device(FewKernels()))
    assert [line.partition(":")[0] for line in found.detail.splitlines()] == ["portable", "compile"]
    assert found.lacks == ""
    found = CASES["rates/frozen-forward/bfloat16/perf"].run(Device(FewKernels()))
    assert [line.partition(":")[0] for line in found.detail.splitlines()] == ["portable"]
    assert found.lacks == "kernel compile has no bfloat16"


def test_a_dtype_that_is_not_claimed_is_listed() -> None:
    with pytest.raises(UnsupportedError, match="float16"):
        CASES["rates/matmul/float16/perf"].run(Device(get_backend("cpu")))


class Compiling(CpuBackend):
    """A device that compiles again in every step."""

    count = 0

    def compile_count(self) -> int:
        self.count += 1
        return self.count


class Changing(CpuBackend):
    """A device whose results are still written when the fence has returned."""

    def synchronize(self, *tensors: torch.Tensor) -> None:
        self._last: Sequence[torch.Tensor] = tensors


@pytest.mark.parametrize(
    ("backend", "words"), [(Compiling(), "compilations inside the timed region"), (Changing(), rates.CHANGED)]
)
def test_a_measurement_that_is_not_valid_fails(
    backend: CpuBackend, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(backend, Changing):
        read = rates.Repeated.read

        def late(self: rates.Repeated) -> list[str]:
            found = read(self)
            for tensor in self._results:
                tensor.add_(1.0)
            return found

        monkeypatch.setattr(rates.Repeated, "read", late)
    with pytest.raises(ViolationError, match=words):
        small("matmul/float32").run(Device(backend))


def test_a_reading_that_is_late_once_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    valid, late = (
        Measurement(1, WarmUp(1, 1, True, 0, 0), 1, (2_000_000,), 0, reasons=reasons) for reasons in ((), ("late",))
    )
    found = iter((late, valid))
    monkeypatch.setattr(rates, "measure", lambda *_: next(found))
    assert "; 2 ms" in small("matmul/float32").run(Device(get_backend("cpu"))).detail
