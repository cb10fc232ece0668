"""The CUDA backend: NVIDIA GPUs through torch.cuda. AMD's are a subclass of it (`rocm.py`)."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch

from ... import UserError
from ...kernels.words import count, first_line
from ..host.choices import MEASURED, Choice, Chooser, Chosen, timed_in_turns
from ..torch_device import TorchDevice
from ..traits import CUDA
from ..types import DTYPES, Availability, CastPolicy, DeviceInfo, EnergyUse, eight_bit_policy, unsupported_dtype
from .graphs import OFF_SWITCH, CapturedStep, GraphCapture, why_not_captured

if TYPE_CHECKING:
    from ...kernels.cuda.encoder import Forward
    from ...kernels.cuda.rows import TokenRows
    from ...kernels.packed import PackedBatch
    from ...kernels.weights import EncoderWeights
    from ..protocols import FrozenEncoder, PackedAttention

T = TypeVar("T")

log = logging.getLogger("isotrain")

# Tokens that go through the encoder's layers at once: enough rows to keep every multiprocessor busy.
CHUNK_TOKENS = CUDA.feature_batch_tokens

# The Triton kernels and flash attention need at least this compute capability.
LEAST_CAPABILITY = (8, 0)

# The least compute capability of each 8-bit format.
_EIGHT_BIT = {"int8": (7, 5), "float8_e4m3": (8, 9)}

# Dense bfloat16 TFLOP/s and GB/s from NVIDIA's data sheets, by the device's whole name. Other devices, such as a MIG
# slice, have no vendor figure and show "n/a".
_VENDOR_PEAKS = {
    "H200": (989.4, 4800.0),
    "H200 NVL": (835.5, 4800.0),
    "H100 80GB HBM3": (989.4, 3350.0),
    "H100 NVL": (835.5, 3938.0),
    "H100 PCIe": (756.0, 2000.0),
    "A100-SXM4-80GB": (312.0, 2039.0),
    "A100 80GB PCIe": (312.0, 1935.0),
    "A100-SXM4-40GB": (312.0, 1555.0),
    "L4": (121.0, 300.0),
}


class CudaBackend(TorchDevice):
    """One GPU: asynchronous kernels, a caching allocator, copies on a side stream."""

    name = "cuda"
    traits = CUDA
    # What the maker calls its matrix units, and the command that shows its GPUs.
    units: ClassVar[str] = "tensor cores"
    tool: ClassVar[str] = "nvidia-smi"
    # Its kernel module.
    driver: ClassVar[str] = "nvidia"

    def __init__(self, index: int | None = None) -> None:
        super().__init__(index)
        self._captures: list[GraphCapture] = []
        torch.cuda.set_device(index or 0)
        # As the cast policy says; by default, torch lets split-K products accumulate in the operands' dtype.
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
        return cls._found()

    @classmethod
    def _found(cls) -> Availability:
        """The GPUs that torch counts, or why they can't be opened."""
        try:
            return Availability(True, f"{torch.cuda.get_device_name(0)} ({count(torch.cuda.device_count(), 'device')})")
        except RuntimeError as error:
            reason = f"the GPU can't be opened ({first_line(error)})"
            fix = f"check with {cls.tool} that it is healthy and not held by another process"
            return Availability(False, reason, fix)

    def info(self) -> DeviceInfo:
        properties = torch.cuda.get_device_properties(self.device)
        peaks = self._peaks(properties)
        return DeviceInfo(
            backend=self.name,
            device=str(self.device),
            name=properties.name,
            memory_bytes=properties.total_memory,
            compute_units=properties.multi_processor_count,
            vendor_peak_tflops=peaks[0],
            vendor_bandwidth_gbps=peaks[1],
            features=(f"sm_{properties.major}{properties.minor}",),
            versions={**self._versions(), "driver": _driver_version(self.driver)},
            untested=self.traits.untested,
        )

    def _versions(self) -> dict[str, str]:
        return {"torch": torch.__version__, "cuda": torch.version.cuda or "unknown"}

    def _peaks(self, properties: Any) -> tuple[float | None, float | None]:
        """The vendor's figures for a whole GPU with torch's `properties`."""
        # Older drivers leave the maker out.
        return _VENDOR_PEAKS.get(properties.name.removeprefix("NVIDIA "), (None, None))

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        if dtype in ("float32", "float64"):
            return CastPolicy(dtype, dtype, dtype, dtype, f"{dtype} throughout (TF32 stays off)")
        if dtype == "bfloat16":
            if self._has_bfloat16():
                return CastPolicy(dtype, dtype, dtype, "float32", f"bfloat16 {self.units}, float32 sums")
            if strict:
                return CastPolicy(dtype, dtype, dtype, "float32", "asked for strictly; this GPU emulates bfloat16")
            return CastPolicy(
                dtype, dtype, "float32", "float32", f"weights rounded to bfloat16: no bfloat16 {self.units}"
            )
        if dtype == "float16":
            return CastPolicy(dtype, dtype, dtype, "float32", f"float16 {self.units}, float32 sums")
        eight_bit = self._eight_bit()
        if dtype in eight_bit:
            return eight_bit_policy(dtype, f" on {self.units}")
        raise unsupported_dtype(dtype, "cuda", *DTYPES, *eight_bit)

    def _eight_bit(self) -> list[str]:
        """The 8-bit formats that the GPU multiplies."""
        capability = torch.cuda.get_device_capability(self.device)
        return [dtype for dtype, least in _EIGHT_BIT.items() if capability >= least]

    def _has_bfloat16(self) -> bool:
        return torch.cuda.is_bf16_supported(including_emulation=False)

    def energy(self) -> EnergyUse:
        from .nvml import gpu_energy

        return gpu_energy(str(torch.cuda.get_device_properties(self.device).uuid))

    @contextmanager
    def named_range(self, name: str) -> Iterator[None]:
        # NVTX is what Nsight shows.
        with super().named_range(name), torch.cuda.nvtx.range(name):
            yield

    def adam_options(self) -> dict[str, Any]:
        return {"fused": True}

    def prefetch(self, batches: Iterable[T]) -> Iterator[T]:
        """Copies one batch ahead on a side stream, so that the copy overlaps with the current batch's work.

        The copies are asynchronous because they read pinned memory. At most two batches are in flight. torch's
        allocator reuses pinned pages once the copy that reads them has finished.
        """
        ahead: deque[tuple[T, torch.cuda.Event]] = deque()
        for batch in batches:
            ahead.append(self._send(batch))
            if len(ahead) == 2:
                yield self._arrived(*ahead.popleft())
        while ahead:
            yield self._arrived(*ahead.popleft())

    @cached_property
    def _copying(self) -> torch.cuda.Stream:
        """The one stream of all copies. Each stream has blocks of memory of its own."""
        return torch.cuda.Stream(self.device)

    def _send(self, batch: T) -> tuple[T, torch.cuda.Event]:
        pinned = map_tensors(batch, lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())
        with torch.cuda.stream(self._copying):
            sent = map_tensors(pinned, lambda tensor: tensor.to(self.device, non_blocking=True))
        return sent, self._copying.record_event()

    def _arrived(self, batch: T, copied: torch.cuda.Event) -> T:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            # Otherwise the allocator could reuse the memory on the side stream while this stream reads it.
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
        """Graphs captured so far. A capture compiles nothing, but takes much longer than a step."""
        return sum(capture.count for capture in self._captures)

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
        from ...kernels.packed.eight_bit import uneven
        from .encoder_choices import EncoderChoices

        if kernel == "compile":
            return self.compiled_encoder(weights, policy, chunk_tokens=CHUNK_TOKENS)
        reason = "" if kernel == "portable" else self._why_no_triton(weights, policy)
        if reason and kernel != "auto":
            raise UserError(f"kernel {kernel!r} can't run here: {reason}; use kernel auto or portable")
        if reason:
            log.info("the portable kernel serves: %s", reason)
        if reason or kernel == "portable":
            if policy.eight_bit and (width := uneven(weights.config)):
                raise UserError(f"dtype {policy.requested} on {self.name} does not support {width}; give bfloat16")
            return self.portable_encoder(weights, policy, chunk_tokens=CHUNK_TOKENS)
        placed, compute = (
            weights.to(device=self.device, dtype=getattr(torch, policy.param)),
            getattr(torch, policy.compute),
        )
        operators = Operators(attention="flash" if kernel == "flash" else "triton")
        encoder = PackedGpuEncoder(placed, compute, operators, CHUNK_TOKENS)
        made: tuple[Operators, int] | None = operators, CHUNK_TOKENS
        if kernel == "auto":
            with torch.cuda.device(self.device):
                made = EncoderChoices(encoder, placed, compute, self.choose).made()
        if made is None:
            log.warning("the portable kernel serves: what was measured of the others was wrong; see isotrain doctor -v")
            return self.portable_encoder(weights, policy, chunk_tokens=CHUNK_TOKENS)
        return encoder.changed(*made, self._runner(weights.config.max_positions))

    def choose(self, choice: Choice) -> str:
        chosen = self._chooser.choose(choice)
        if chosen.source == MEASURED:
            self._forget_peak()
        return chosen.way

    def _forget_peak(self) -> None:
        """What was measured needed more memory than what is run."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def choices(self, *, kept: bool = False) -> list[Chosen]:
        return self._chooser.kept() if kept else list(self._chooser.made.values())

    @cached_property
    def _chooser(self) -> Chooser:
        from ... import __version__
        from ...kernels.cuda.support import code_sha256

        info = self.info()
        parts = {"name": info.name, "units": str(info.compute_units), "memory": str(info.memory_bytes)}
        parts |= {"isotrain": __version__, "kernels": code_sha256(), **info.versions}
        return Chooser(parts, partial(timed_in_turns, self))

    def _why_no_triton_here(self) -> str:
        from ...kernels.cuda import why_no_triton

        return self._why_not_this_gpu() or why_no_triton()

    def _why_not_this_gpu(self) -> str:
        """Why the Triton kernels don't run on a GPU of this architecture, or an empty string."""
        capability = torch.cuda.get_device_capability(self.device)
        if capability >= LEAST_CAPABILITY:
            return ""
        return f"this GPU is sm_{capability[0]}{capability[1]}, the Triton kernels need sm_80 or newer"

    def _why_no_triton(self, weights: EncoderWeights, policy: CastPolicy) -> str:
        from ...kernels.cuda import smoke_test, why_not

        if policy.eight_bit:
            return f"the Triton kernels have no {policy.label}"
        compute = getattr(torch, policy.compute)
        reason = self._why_no_triton_here()
        reason = reason or why_not(weights.config, compute, getattr(torch, policy.accumulate))
        if reason:
            return reason
        with torch.cuda.device(self.device):
            return smoke_test(self.device, compute, weights.config)

    def _runner(self, longest: int) -> Callable[[Forward], Forward]:
        """A wrapper that runs an encoder's forward pass on this device, and replays graphs for small batches."""
        from ...kernels.cuda import BucketRunner

        def wrap(forward: Forward) -> Forward:
            run = BucketRunner(forward, self._new_capture(), longest) if _graphs_wanted() else forward

            def on_device(rows: TokenRows) -> torch.Tensor:
                # Triton launches on the current device, even if its arguments are on another one.
                with torch.cuda.device(self.device):
                    return run(rows)

            return on_device

        return wrap

    def _new_capture(self) -> GraphCapture:
        capture = GraphCapture(self.device)
        self._captures.append(capture)
        return capture


def _driver_version(module: str) -> str:
    """That of a loaded kernel module, as Linux says it."""
    path = Path("/sys/module") / module / "version"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else "unknown"


def _graphs_wanted() -> bool:
    return os.environ.get(OFF_SWITCH, "1") != "0"


def map_tensors(value: T, change: Callable[[torch.Tensor], torch.Tensor]) -> T:
    """`value` with `change` applied to every tensor in it, through dataclasses, lists, tuples and dicts."""
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
