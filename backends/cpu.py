"""The CPU backend: every host that torch runs on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .. import UserError
from .host import processor
from .host.rapl import RaplCounters
from .torch_device import TorchDevice
from .traits import CPU
from .types import (
    Availability,
    CastPolicy,
    DeviceInfo,
    EnergyUse,
    UnitRate,
    eight_bit_policy,
    unsupported_dtype,
    versions,
)

if TYPE_CHECKING:
    from torch import nn

    from ..kernels.packed.attention import Attention
    from ..kernels.weights import EncoderWeights
    from .protocols import FrozenEncoder, HeadStep, TrainedEncoder

log = logging.getLogger("isotrain")


class CpuBackend(TorchDevice):
    """Host execution: eager, synchronous, always available."""

    name = "cpu"
    torch_type = "cpu"
    traits = CPU

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        if index not in (None, 0):
            raise UserError(
                f"backend '{self.name}:{index}': a host is one device; write {self.name}, and choose cores by --threads"
            )
        super().__init__(index, options)
        self._rapl = RaplCounters()
        self._said: set[str] = set()

    @classmethod
    def probe(cls) -> Availability:
        return Availability(True, f"{processor.processor_name()}, {processor.usable_cores()} cores")

    def info(self) -> DeviceInfo:
        return DeviceInfo(
            backend=self.name,
            device="cpu",
            name=processor.processor_name(),
            memory_bytes=processor.memory_bytes(),
            compute_units=processor.usable_cores(),
            features=processor.matrix_features(),
            versions=versions(),
        )

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        if dtype in ("float32", "float64"):
            return CastPolicy(dtype, dtype, dtype, dtype, f"{dtype} throughout")
        if dtype == "bfloat16":
            units = processor.bfloat16_units()
            if units:
                return CastPolicy(dtype, dtype, dtype, "float32", f"bfloat16 products on {units}, float32 sums")
            if strict:
                reason = "asked for strictly; this CPU emulates bfloat16 slowly"
                return CastPolicy(dtype, dtype, dtype, "float32", reason)
            reason = (
                "weights rounded to bfloat16, products in float32: this CPU has no bfloat16 units "
                "(AMX or AVX512-BF16) and emulates them several times slower"
            )
            return CastPolicy(dtype, dtype, "float32", "float32", reason)
        if dtype == "int8":
            units = processor.int8_units()
            return eight_bit_policy(dtype, f" on {units}" if units else " (emulated: this CPU has no int8 units)")
        raise unsupported_dtype(dtype, "cpu", *CPU.dtypes)

    def energy(self) -> EnergyUse:
        return self._rapl.read()

    def adam_options(self) -> dict[str, Any]:
        return {"fused": True}

    @contextmanager
    def single_threaded(self) -> Iterator[None]:
        """Uses one thread inside.

        Measured on a 768-256-77 head at batch 8, with one and two threads in one run: 0.83 and 0.80 ms a step on an
        idle machine, 1.4 and 83 ms beside one other busy process, since every operator waits for its last thread. It
        also makes the head's bits independent of the number of threads.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def attention(self) -> Attention:
        from ..kernels.packed.attention import host_attention

        return host_attention

    def head_step(self, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer) -> HeadStep | None:
        from ..kernels.cpu import head

        reason = head.head_step_unsupported(parameters, optimizer)
        if reason is not None:
            self._say_why("the head is trained by autograd: its native step", reason)
            return None
        return head.HeadStep(parameters, optimizer)

    def _say_why(self, what: str, reason: str) -> None:
        log.info("%s can't run (%s)", what, "for the same reason" if reason in self._said else reason)
        self._said.add(reason)

    def kernels(self) -> dict[str, Availability]:
        from ..kernels.cpu.library import ISAS, best_isa, why_not

        reason = why_not()
        units = ", ".join(f"{dtype} by {best_isa(dtype)}" for dtype in ISAS)
        native = Availability(reason is None, reason or f"{units}; trains whole models in bfloat16")
        return {"native": native, **super().kernels()}

    def measured_unit_tflops(self, dtype: str) -> UnitRate | None:
        from concurrent.futures import ThreadPoolExecutor

        from ..kernels.cpu import library

        multiplied = dtype if dtype in (*library.ISAS, "float32") else "bfloat16"
        unit = library.vectors() if multiplied == "float32" else library.best_isa(multiplied)
        if unit is None:
            return None

        def rate(_: int) -> float:
            if multiplied == "float32":
                return library.multiply_add_rate()
            return library.unit_rate(unit, library.second_level_cache_bytes() // 2)

        threads = torch.get_num_threads()
        # All threads run at once, since they share clocks and power. The calls release the interpreter lock.
        with ThreadPoolExecutor(threads) as pool:
            rates = sum(pool.map(rate, range(threads)))
        fed_from = "registers" if multiplied == "float32" else "second-level cache"
        return UnitRate(unit, multiplied, fed_from, rates / 1e12, threads)

    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> FrozenEncoder:
        if kernel == "compile":
            return self.compiled_encoder(weights, policy)
        if kernel != "portable":
            from ..kernels.cpu.library import ISAS, best_isa

            native = self.kernels()["native"]
            reason = _not_native(weights, policy, tuple(ISAS)) if native.ok else native.reason
            if not reason:
                from ..kernels.cpu import NativeEncoder

                return NativeEncoder(weights, best_isa(policy.compute))
            if kernel == "native":
                raise UserError(f"kernel native can't run: {reason}")
            self._say_why("kernel portable: the native one", reason)
        from ..kernels.packed.prepacked import prepacked_linear

        return self.portable_encoder(weights, policy, make_linear=prepacked_linear)

    def trained_encoder(
        self, weights: EncoderWeights, policy: CastPolicy, kernel: str, words: nn.Embedding, recompute: bool
    ) -> TrainedEncoder | None:
        native = self.kernels()["native"]
        reason = _not_native(weights, policy, ("bfloat16",)) if native.ok else native.reason
        if not reason:
            from ..kernels.cpu.trained_encoder import TrainedEncoder

            return TrainedEncoder(weights, padding=words.padding_idx, recompute=recompute, sparse=words.sparse)
        if kernel == "native":
            raise UserError(f"kernel native can't run: {reason}")
        self._say_why("the encoder is trained by its transformers module: the native step", reason)
        return None


def _not_native(weights: EncoderWeights, policy: CastPolicy, dtypes: Sequence[str]) -> str:
    """Why the native kernel, which multiplies these dtypes, can't run under `policy`, or an empty string."""
    from ..kernels.cpu.encoder import unsupported

    if policy.compute not in dtypes:
        able = " and ".join(dtypes)
        return f"it multiplies {able} only, and dtype is {policy.label}; set dtype: bfloat16, or kernel: portable"
    shape = unsupported(weights.config)
    return f"it does not support {shape}; use kernel portable" if shape else ""
