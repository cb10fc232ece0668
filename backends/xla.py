"""The XLA backend: PJRT devices through torch_xla, which traces lazily and compiles a program for each shape.

`tt/card_xla.py` builds on it. Only these two files import torch_xla, when a backend is opened.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar

from .. import UserError
from ..kernels.install import install_hint
from ..kernels.words import count
from .base import Backend, Generator
from .host import processor
from .host.cache import cache_folder
from .host.memory import process_memory
from .host.rapl import RaplCounters
from .training.batch_norm import correct_running_statistics
from .traits import XLA
from .types import (
    Availability,
    CastPolicy,
    DeviceInfo,
    EnergyUse,
    MemoryUse,
    ShapeGrid,
    cannot_share,
    unsupported_dtype,
    versions,
)

if TYPE_CHECKING:
    import torch

    from ..kernels.packed import PackedBatch, PaddedBatch, PortableEncoder
    from ..kernels.weights import EncoderWeights
    from .protocols import FrozenEncoder

T = TypeVar("T")

DEVICE_VARIABLE = "PJRT_DEVICE"
SUCCEEDED = "2.9 is its last release, and backend tpu succeeds it"
CACHE_PATH_VARIABLE = "XLA_PERSISTENT_CACHE_PATH"
# Replaces Adam's learning rate of 0. float32 can represent the quotients, and no weight changes.
LEAST_RATE = 1e-30

# Tokens per batch in a pass over a whole split. An accelerator needs many to be busy, a host fewer. Fewer tokens mean
# less padding in the last batch.
DEVICE_BATCH_TOKENS, HOST_BATCH_TOKENS = 16384, 1024


class XlaBackend(Backend):
    """A lazy, compiling PJRT device with batches of a few shapes. PJRT_DEVICE chooses CPU (default), TPU or CUDA.

    It has been run on CPU. TPU and CUDA use the same calls and have not been run.
    """

    name = "xla"
    traits = XLA

    def __init__(self, index: int | None = None) -> None:
        super().__init__(index)
        os.environ.setdefault(DEVICE_VARIABLE, "CPU")
        self._open(os.environ[DEVICE_VARIABLE])

    @classmethod
    def probe(cls) -> Availability:
        found = torch_xla_version()
        if not found.ok:
            return found
        chosen = os.environ.get(DEVICE_VARIABLE)
        device = chosen or f"CPU, the default; {DEVICE_VARIABLE}=TPU or CUDA chooses another"
        return Availability(True, f"{found.reason}, {DEVICE_VARIABLE} {device}")

    def _open(self, device_type: str) -> None:
        """Imports torch_xla for PJRT devices of `device_type` and opens one. Raises UserError if there is none."""
        if "torch_tpu" in sys.modules:
            raise cannot_share(self.name, "torch_tpu")
        import torch
        import torch_xla
        from torch_xla import runtime
        from torch_xla.core import xla_model

        self._xla, self._runtime, self._model = torch_xla, runtime, xla_model
        self.device_type = device_type.upper()
        self._host_energy = RaplCounters()
        runtime.set_device_type(self.device_type)
        self._use_compile_cache()
        self._configure()
        try:
            there = runtime.addressable_device_count()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"backend {self.name!r} can't open a {self.device_type} device ({reason}); "
                f"check the device, or set {DEVICE_VARIABLE} to another one"
            ) from error
        if self.index is not None and self.index >= there:
            raise UserError(
                f"backend '{self.name}:{self.index}': it has {count(there, f'{self.device_type} device')}; "
                f"use {self.name}:0 to {self.name}:{there - 1}"
            )
        self._device = torch_xla.device(self.index)
        correct_running_statistics("XLA")
        xla_model.set_rng_state(torch.initial_seed() % 2**63, str(self._device))

    def _configure(self) -> None:
        """Sets what must be set before the first program is compiled."""
        from torch_xla import backends

        # Otherwise devices with bfloat16 or TF32 units use them for float32 products. The logger is silenced because
        # it warns of repeated calls even at the first one.
        logging.getLogger(backends.__name__).setLevel(logging.ERROR)
        backends.set_mat_mul_precision("highest")

    def _use_compile_cache(self) -> None:
        """Keeps compiled programs in isotrain's cache, if the device can load them.

        The host's PJRT client saves programs but can't load them (torch_xla 2.9: "Deserializing serialized executable
        not supported").
        """
        if self.device_type != "CPU" and CACHE_PATH_VARIABLE not in os.environ:
            folder = cache_folder(f"xla/{self.device_type.lower()}-{self._xla.__version__}")
            if folder is not None:
                self._runtime.initialize_cache(str(folder))

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def static_shapes(self) -> ShapeGrid | None:
        return ShapeGrid(HOST_BATCH_TOKENS if self.device_type == "CPU" else DEVICE_BATCH_TOKENS)

    def info(self) -> DeviceInfo:
        if self.device_type == "CPU":
            name, memory = f"{processor.processor_name()} (XLA)", processor.memory_bytes()
            units = processor.usable_cores()
        else:
            attributes = self._runtime.global_runtime_device_attributes()[self.index or 0]
            name, memory, units = f"{self.device_type} {attributes.get('name', '')}".strip(), None, None
        return DeviceInfo(
            backend=self.name,
            device=str(self._device),
            name=name,
            memory_bytes=memory,
            compute_units=units,
            features=(f"PJRT {self.device_type}",),
            versions=versions() | {"torch_xla": self._xla.__version__},
        )

    def cast_policy(self, dtype: str, *, strict: bool = False) -> CastPolicy:
        if dtype == "float32":
            return CastPolicy(dtype, dtype, dtype, dtype, f"{dtype} throughout (products at XLA's highest)")
        if dtype == "bfloat16":
            excess = "a result that the same program uses again may keep more digits than bfloat16"
            if self.device_type != "CPU":
                return CastPolicy(dtype, dtype, dtype, "float32", f"bfloat16 operands, float32 sums; {excess}")
            if strict:
                reason = f"asked for strictly; XLA widens bfloat16 operands to float32 on a host; {excess}"
                return CastPolicy(dtype, dtype, dtype, "float32", reason)
            reason = "weights rounded to bfloat16, products in float32: XLA widens bfloat16 to float32 on a host"
            return CastPolicy(dtype, dtype, "float32", "float32", reason)
        # float64 would be narrower than it says: torch_xla's gelu has 8 digits.
        raise unsupported_dtype(dtype, self.name, "float32", "bfloat16")

    def place(self, value: T) -> T:
        import torch

        if isinstance(value, torch.Tensor) and value.dim() == 0 and value.device.type == "cpu":
            # `to` turns a scalar 0 or 1 into a constant, and each constant needs another program.
            placed: Any = self._model.send_cpu_data_to_device([value.detach()], self._device)[0]
            return placed
        return super().place(value)

    def scalar(self, value: float) -> float | torch.Tensor:
        import torch

        return self.place(torch.tensor(value, dtype=torch.float32))

    def set_learning_rate(self, optimizer: torch.optim.Optimizer, *rates: float) -> None:
        """Sets a tensor for Adam, which multiplies by it on the device. Other optimizers would read it back.

        Adam with a step counter on the device divides by the rate. A warm-up begins with 0, and 0 / 0 would result for
        every weight without a gradient so far (embeddings of unseen words, an adapter's A). Adam gets a rate instead
        that is too small to change a weight.
        """
        import torch

        adam = isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)
        forms: list[Any] = [self.scalar(max(rate, LEAST_RATE)) if adam else rate for rate in rates]
        super().set_learning_rate(optimizer, *forms)

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Gives Adam and SGD their initial zeros as data, since zeros made in the first step become its constants.

        Other optimizers compile a separate program for their first step.
        """
        import torch

        def zeros(like: torch.Tensor) -> torch.Tensor:
            return self.place(torch.zeros(like.shape, dtype=like.dtype))

        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
                    optimizer.state[parameter] = {
                        "step": self.place(torch.zeros((), dtype=torch.float32)),
                        "exp_avg": zeros(parameter),
                        "exp_avg_sq": zeros(parameter),
                    }
                elif isinstance(optimizer, torch.optim.SGD) and group["momentum"]:
                    optimizer.state[parameter] = {"momentum_buffer": zeros(parameter)}
        self.step_boundary()

    def device_compilations(self) -> int:
        """Programs compiled, or loaded from disk, since neither is a step's work."""
        from torch_xla.debug import metrics

        return sum(metrics.counter_value(name) or 0 for name in ("UncachedCompile", "PersistentCacheHit"))

    def step_boundary(self) -> None:
        self._run_pending()

    def _run_pending(self, wait: bool = False) -> None:
        """Runs the pending graph and keeps the seed.

        torch_xla draws a new one at each sync, so dropout's masks would depend on how often a run was saved.
        """
        device = str(self._device)
        seed = self._model.get_rng_state(device)
        self._xla.sync(wait=wait)
        self._model.set_rng_state(seed, device)

    def synchronize(self, *tensors: torch.Tensor) -> None:
        """Starts all pending work and waits for the device.

        ``sync(wait=True)`` returns while the program still runs (measured on PJRT CPU: after 16 ms of 2.1 s).
        `wait_device_ops` does wait, but only for started work.
        """
        del tensors
        self._run_pending()
        self._model.wait_device_ops()

    def memory(self) -> MemoryUse:
        if self.device_type == "CPU":
            return process_memory()
        try:
            used = self._model.get_memory_info(str(self._device))
        except RuntimeError:
            # Not every PJRT plugin counts memory.
            return process_memory()
        return MemoryUse(used["bytes_used"], used.get("peak_bytes_used", used["bytes_used"]), "PJRT allocator")

    def energy(self) -> EnergyUse:
        return self._host_energy.read() if self.device_type == "CPU" else super().energy()

    def adam_options(self) -> dict[str, Any]:
        # Keeps the step counter on the device; as a host number it would be a constant of each step's program.
        return {"capturable": True}

    def generators(self) -> dict[str, Generator]:
        return {**super().generators(), self.name: (self._seed, self._set_seed)}

    def _seed(self) -> torch.Tensor:
        import torch

        seed = int(self._model.get_rng_state(str(self._device)))
        return torch.frombuffer(bytearray(seed.to_bytes(8, "little")), dtype=torch.uint8)

    def _set_seed(self, state: torch.Tensor) -> None:
        self._model.set_rng_state(int.from_bytes(bytes(state.tolist()), "little"), str(self._device))

    def autocast(self, policy: CastPolicy) -> AbstractContextManager[Any]:
        import torch

        if policy.compute == policy.accumulate:
            return nullcontext()
        return torch.autocast("xla", dtype=getattr(torch, policy.compute))

    def build_encoder(self, weights: EncoderWeights, policy: CastPolicy, kernel: str) -> FrozenEncoder:
        del kernel
        return StaticEncoder(self.portable_encoder(weights, policy, chunk_tokens=4 * DEVICE_BATCH_TOKENS))


class StaticEncoder:
    """An encoder of padded batches for a device that compiles a program for each shape. Packed batches are refused.

    Args:
        run: The compiled encoder, if there is one.
    """

    skips_padding = False
    batch_invariant = False

    def __init__(
        self, encoder: PortableEncoder, run: Callable[[PackedBatch | PaddedBatch], torch.Tensor] | None = None
    ) -> None:
        self.name, self.version = encoder.name, encoder.version
        self._encoder = encoder
        self._run = run or encoder

    def __call__(self, batch: PackedBatch | PaddedBatch) -> torch.Tensor:
        """Features, float32 [sequences, hidden]."""
        _refuse_packed(batch)
        return self._run(batch)

    def layer_states(
        self, batch: PackedBatch | PaddedBatch, given: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """See `backends.FrozenEncoder`."""
        _refuse_packed(batch)
        return self._encoder.layer_states(batch, given)


def _refuse_packed(batch: PackedBatch | PaddedBatch) -> None:
    from ..kernels.packed import PackedBatch

    if isinstance(batch, PackedBatch):
        raise UserError(
            "each packed batch has another shape, and this device compiles a program for each shape; "
            "set layout: bucketed or padded"
        )


def torch_xla_version() -> Availability:
    """Whether a torch_xla that fits the installed torch is installed. Neither is imported."""
    fix = (
        "install it with its own torch in a separate environment (8 GB on the disk): `python3 -m venv .venv-xla && "
        f"{install_hint('xla', pip='.venv-xla/bin/pip')}`; or use --backend cpu"
    )
    try:
        found = metadata.version("torch-xla")
    except metadata.PackageNotFoundError:
        return Availability(False, f"torch_xla is not installed; {SUCCEEDED}", fix)
    torch_version = metadata.version("torch")
    if found.split(".")[:2] != torch_version.split(".")[:2]:
        reason = f"torch-xla {found} is not built for the installed torch {torch_version}; {SUCCEEDED}"
        return Availability(False, reason, fix)
    return Availability(True, f"torch-xla {found} ({SUCCEEDED})")
