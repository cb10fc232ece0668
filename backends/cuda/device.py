"""The CUDA backend: NVIDIA GPUs through torch.cuda."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ... import UserError
from ...kernels.words import count
from ..torch_device import TorchDevice
from ..traits import CUDA
from ..types import Availability, CastPolicy, DeviceInfo, EnergyUse
from .graphs import OFF_SWITCH, CapturedStep, GraphCapture, why_not_captured

if TYPE_CHECKING:
    from ...kernels.cuda.encoder import Forward
    from ...kernels.cuda.rows import TokenRows
    from ...kernels.packed import PackedBatch
    from ...kernels.weights import EncoderWeights
    from ..protocols import FrozenEncoder, PackedAttention

T = TypeVar("T")

log = logging.getLogger("isotrain")

# triton and flash differ in their attention only: ours, or torch's for sequences of any length.
# Tokens that go through the encoder's layers at once: enough rows to keep every multiprocessor busy.
CHUNK_TOKENS = CUDA.feature_batch_tokens

# Older GPUs lack what the Triton kernels and flash attention need.
LEAST_CAPABILITY = (8, 0)

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


class CudaBackend(TorchDevice):
    """One NVIDIA GPU: asynchronous kernels, a caching allocator, copies on a side stream."""

    name = "cuda"
    traits = CUDA

    def __init__(self, index: int | None = None) -> None:
        there = torch.cuda.device_count()
        if index is not None and index >= there:
            raise UserError(
                f"backend 'cuda:{index}': this machine has {count(there, 'CUDA device')}; use cuda:0 to "
                f"cuda:{there - 1}"
            )
        super().__init__(index)
        self._captures: list[GraphCapture] = []
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
            return Availability(True, f"{torch.cuda.get_device_name(0)} ({count(torch.cuda.device_count(), 'device')})")
        except RuntimeError as error:
            reason = f"the GPU can't be opened ({str(error).splitlines()[0]})"
            return Availability(
                False, reason, "check with nvidia-smi that it is healthy and not held by another process"
            )

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

    def energy(self) -> EnergyUse:
        from .nvml import gpu_energy

        return gpu_energy(str(torch.cuda.get_device_properties(self.device).uuid))

    def adam_options(self) -> dict[str, Any]:
        return {"fused": True}

    def prefetch(self, batches: Iterable[T]) -> Iterator[T]:
        """Copies one batch ahead on a side stream, so that the copy runs behind the current batch's work.

        From pinned memory, for from any other a copy waits. Two batches are under way at most: the pages of an earlier
        one are pinned already and used again, by torch's allocator, which waits for the copy that reads them.
        """
        stream = torch.cuda.Stream(self.device)
        ahead: deque[tuple[T, torch.cuda.Event]] = deque()
        for batch in batches:
            ahead.append(self._send(batch, stream))
            if len(ahead) == 2:
                yield self._arrived(*ahead.popleft())
        while ahead:
            yield self._arrived(*ahead.popleft())

    def _send(self, batch: T, stream: torch.cuda.Stream) -> tuple[T, torch.cuda.Event]:
        pinned = map_tensors(batch, lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())
        with torch.cuda.stream(stream):
            sent = map_tensors(pinned, lambda tensor: tensor.to(self.device, non_blocking=True))
        return sent, stream.record_event()

    def _arrived(self, batch: T, copied: torch.cuda.Event) -> T:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            # The allocator would hand the block out again on the side stream unless told that this stream reads it.
            tensor.record_stream(current)
            return tensor

        return map_tensors(batch, keep)

    def capture_step(
        self, step: Callable[..., torch.Tensor], optimizer: torch.optim.Optimizer
    ) -> Callable[..., torch.Tensor]:
        reason = why_not_captured(optimizer) if _graphs_wanted() else f"{OFF_SWITCH}=0"
        if reason:
            log.info("the optimizer's steps run without a CUDA graph: %s", reason)
            return step
        return CapturedStep(step, optimizer, self._new_capture())

    def device_compilations(self) -> int:
        """Graphs captured so far: a capture compiles nothing, but it costs a step's time many times over."""
        return sum(capture.count for capture in self._captures)

    def grad_scaler(self, policy: CastPolicy) -> torch.amp.GradScaler | None:
        return torch.amp.GradScaler("cuda") if policy.compute == "float16" else None

    def packed_attention(self, batch: PackedBatch) -> PackedAttention:
        from ...kernels.cuda import VarlenAttention

        return VarlenAttention(batch)

    def kernels(self) -> dict[str, Availability]:
        reason = self._why_no_triton_here()
        triton = Availability(not reason, reason or "Triton kernels, ours for attention too")
        flash = Availability(not reason, reason or "torch's variable-length attention, else as triton")
        return {"triton": triton, "flash": flash, **super().kernels()}

    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> FrozenEncoder:
        from ...kernels.cuda import Operators, PackedGpuEncoder
        from ...kernels.weights import check_finite

        reason = "" if kernel == "portable" else self._why_no_triton(weights, policy)
        if reason and kernel != "auto":
            raise UserError(f"kernel {kernel!r} can't run here: {reason}; use kernel auto or portable")
        if reason:
            log.info("the portable kernel serves: %s", reason)
        if reason or kernel == "portable":
            return self.portable_encoder(weights, policy, chunk_tokens=CHUNK_TOKENS)
        check_finite(weights)
        return PackedGpuEncoder(
            weights.to(device=self.device, dtype=getattr(torch, policy.param)),
            compute_dtype=getattr(torch, policy.compute),
            operators=Operators(attention="flash" if kernel == "flash" else "triton"),
            chunk_tokens=CHUNK_TOKENS,
            runner=self._runner(weights.config.max_positions),
        )

    def _why_no_triton_here(self) -> str:
        capability = torch.cuda.get_device_capability(self.device)
        if capability < LEAST_CAPABILITY:
            return f"this GPU is sm_{capability[0]}{capability[1]}, the Triton kernels need sm_80 or newer"
        from ...kernels.cuda import why_no_triton

        return why_no_triton()

    def _why_no_triton(self, weights: EncoderWeights, policy: CastPolicy) -> str:
        from ...kernels.cuda import smoke_test, why_not

        compute = getattr(torch, policy.compute)
        reason = self._why_no_triton_here()
        reason = reason or why_not(weights.config, compute, getattr(torch, policy.accumulate))
        if reason:
            return reason
        with torch.cuda.device(self.device):
            return smoke_test(self.device, compute, weights.config)

    def _runner(self, longest: int) -> Callable[[Forward], Forward]:
        """Makes an encoder's forward pass run on this device, and repeat graphs where batches are small."""
        from ...kernels.cuda import BucketRunner

        def wrap(forward: Forward) -> Forward:
            run = BucketRunner(forward, self._new_capture(), longest) if _graphs_wanted() else forward

            def on_device(rows: TokenRows) -> torch.Tensor:
                # Triton launches on the current device, whatever device its arguments are on.
                with torch.cuda.device(self.device):
                    return run(rows)

            return on_device

        return wrap

    def _new_capture(self) -> GraphCapture:
        capture = GraphCapture(self.device)
        self._captures.append(capture)
        return capture


def _graphs_wanted() -> bool:
    return os.environ.get(OFF_SWITCH, "1") != "0"


def map_tensors(value: T, change: Callable[[torch.Tensor], torch.Tensor]) -> T:
    """`value` with every tensor in it replaced: itself, a dataclass's fields, a list's, tuple's or dict's items."""
    item: Any = value
    if isinstance(item, torch.Tensor):
        item = change(item)
    elif isinstance(item, dict):
        item = {key: map_tensors(part, change) for key, part in item.items()}
    elif isinstance(item, (list, tuple)):
        item = type(item)(map_tensors(part, change) for part in item)
    elif dataclasses.is_dataclass(item) and not isinstance(item, type):
        parts = {field.name: getattr(item, field.name) for field in dataclasses.fields(item) if field.init}
        item = dataclasses.replace(item, **{name: map_tensors(part, change) for name, part in parts.items()})
    return item
