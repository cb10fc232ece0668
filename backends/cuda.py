"""The CUDA backend: NVIDIA GPUs through torch.cuda."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .. import UserError
from .base import Availability, Backend, CastPolicy, DeviceInfo, FrozenEncoder, MemoryUse

if TYPE_CHECKING:
    from ..kernels.weights import EncoderWeights

T = TypeVar("T")

KERNELS = ("auto", "portable")

# Tokens that go through the encoder's repetitions at once: enough rows to keep every multiprocessor busy.
CHUNK_TOKENS = 65536

# Dense bfloat16 TFLOP/s and GB/s from NVIDIA's data sheets, by a part of the device's name. A device that is not
# here has no vendor figure: "n/a" is shown, never another device's.
_VENDOR_PEAKS = {
    "H200": (989.4, 4800.0),
    "H100 PCIe": (756.0, 2000.0),
    "H100 80GB HBM3": (989.4, 3350.0),
    "A100-SXM4-80GB": (312.0, 2039.0),
    "A100-SXM4-40GB": (312.0, 1555.0),
    "L4": (121.0, 300.0),
}


class CudaBackend(Backend):
    """One NVIDIA GPU: asynchronous kernels, a caching allocator, copies on a side stream."""

    name = "cuda"

    def __init__(self, index: int | None = None) -> None:
        count = torch.cuda.device_count()
        if index is not None and index >= count:
            raise UserError(
                f"backend 'cuda:{index}': this machine has {count} CUDA device(s); use cuda:0 to cuda:{count - 1}"
            )
        super().__init__(index)
        torch.cuda.set_device(index or 0)
        # What the cast policy promises; torch's defaults let split-K products add up in the operands' dtype.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.set_float32_matmul_precision("highest")

    @classmethod
    def probe(cls) -> Availability:
        if torch.version.cuda is None:
            return Availability(
                False,
                f"torch {torch.__version__} is built without CUDA",
                "install a CUDA build of torch (see pytorch.org/get-started) on a machine with an NVIDIA GPU",
            )
        if not torch.cuda.is_available():
            return Availability(
                False,
                "torch has CUDA support but finds no usable NVIDIA GPU",
                "check that nvidia-smi lists a device, its driver fits torch's CUDA "
                f"{torch.version.cuda}, and CUDA_VISIBLE_DEVICES does not hide it",
            )
        try:
            return Availability(True, f"{torch.cuda.get_device_name(0)} ({torch.cuda.device_count()} device(s))")
        except RuntimeError as error:
            reason = f"the GPU can't be opened ({str(error).splitlines()[0]})"
            return Availability(
                False, reason, "check with nvidia-smi that it is healthy and not held by another process"
            )

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.index or 0)

    def info(self) -> DeviceInfo:
        properties = torch.cuda.get_device_properties(self.device)
        known = (peaks for part, peaks in _VENDOR_PEAKS.items() if re.search(rf"\b{part}\b", properties.name))
        peaks = next(known, (None, None))
        return DeviceInfo(
            backend=self.name,
            device=str(self.device),
            name=properties.name,
            memory_bytes=properties.total_memory,
            compute_units=properties.multi_processor_count,
            vendor_peak_tflops=peaks[0],
            vendor_bandwidth_gbps=peaks[1],
            features=(f"sm_{properties.major}{properties.minor}",),
            versions={"torch": torch.__version__, "cuda": torch.version.cuda or "unknown"},
        )

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        if dtype in ("float32", "float64"):
            return CastPolicy(dtype, dtype, dtype, dtype, f"{dtype} throughout (TF32 stays off)")
        if dtype == "bfloat16":
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return CastPolicy(dtype, dtype, dtype, "float32", "bfloat16 tensor cores, float32 sums")
            if strict:
                return CastPolicy(dtype, dtype, dtype, "float32", "asked for strictly; this GPU emulates bfloat16")
            return CastPolicy(
                dtype, dtype, "float32", "float32", "weights rounded to bfloat16: no bfloat16 tensor cores"
            )
        if dtype == "float16":
            return CastPolicy(dtype, dtype, dtype, "float32", "float16 tensor cores, float32 sums")
        raise UserError(
            f"dtype {dtype!r} can't train on the cuda backend; allowed are float32, bfloat16, float16, float64; set one"
        )

    def synchronize(self, *tensors: torch.Tensor) -> None:
        del tensors  # The device's queue is in order: when it is empty, every tensor is written.
        torch.cuda.synchronize(self.device)

    def memory(self) -> MemoryUse:
        return MemoryUse(
            torch.cuda.memory_allocated(self.device), torch.cuda.max_memory_allocated(self.device), "CUDA allocator"
        )

    def adam_options(self) -> dict[str, Any]:
        return {"fused": True}

    def rng_state(self) -> dict[str, torch.Tensor]:
        return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(self.device)}

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        missing = {"cpu", "cuda"} - set(state)
        if missing:
            raise UserError(
                f"the saved state has no generator {sorted(missing)} (it has {sorted(state)}); resume on its backend"
            )
        torch.set_rng_state(state["cpu"].to("cpu", torch.uint8))
        torch.cuda.set_rng_state(state["cuda"].to("cpu", torch.uint8), self.device)

    def prefetch(self, batches: Iterable[T]) -> Iterator[T]:
        """Copies one batch ahead on a side stream, so that the copy runs behind the current batch's work."""
        stream = torch.cuda.Stream(self.device)
        ahead: deque[T] = deque()
        for batch in batches:
            with torch.cuda.stream(stream):
                ahead.append(self.place(batch))
            if len(ahead) == 2:
                yield self._arrived(ahead.popleft(), stream)
        while ahead:
            yield self._arrived(ahead.popleft(), stream)

    def _arrived(self, batch: T, stream: torch.cuda.Stream) -> T:
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(stream)
        # The allocator would hand the block out again on the side stream unless told that this stream reads it.
        for tensor in _tensors(batch):
            if tensor.is_cuda:
                tensor.record_stream(current)
        return batch

    def autocast(self, policy: CastPolicy) -> AbstractContextManager[Any]:
        compute = getattr(torch, policy.compute)
        return torch.autocast("cuda", dtype=compute, enabled=policy.compute != policy.accumulate)

    def kernels(self) -> tuple[str, ...]:
        return KERNELS

    def frozen_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str = "auto") -> FrozenEncoder:
        from ..kernels.packed import PortableEncoder

        if kernel not in KERNELS:
            raise UserError(f"kernel {kernel!r} does not exist on backend cuda; allowed are {', '.join(KERNELS)}")
        rounded = weights.to(device=self.device, dtype=getattr(torch, policy.param))
        return PortableEncoder(
            rounded,
            compute_dtype=getattr(torch, policy.compute),
            accumulate_dtype=getattr(torch, policy.accumulate),
            chunk_tokens=CHUNK_TOKENS,
        )


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a batch: itself, the fields of a dataclass, the items of a list, tuple or dict."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(_tensors, value.values()))
    elif isinstance(value, (list, tuple)):
        yield from chain.from_iterable(map(_tensors, value))
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))
