"""Devices that torch drives eagerly: the host, and every accelerator that torch knows by its name.

A subclass of `TorchDevice` needs a name, `probe` and `cast_policy`. Nothing here imports torch before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .. import UserError
from ..kernels.inductor import compiled, why_no_compiler
from ..kernels.words import count
from .base import Backend, Generator
from .host.memory import process_memory
from .types import Availability, CastPolicy, MemoryUse

if TYPE_CHECKING:
    import torch

    from ..kernels.packed import PortableEncoder
    from ..kernels.weights import EncoderWeights

F = TypeVar("F", bound=Callable[..., Any])


class TorchDevice(Backend):
    """A device of torch, by default of the type that the backend is named after."""

    # The type of its torch devices, if that isn't its name.
    torch_type: ClassVar[str] = ""

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        super().__init__(index, options)
        there = self.device_count()
        if index is not None and index >= there:
            raise UserError(
                f"backend '{self.name}:{index}': this machine has {count(there, f'{self.name.upper()} device')}; use "
                + (f"{self.name}:0 to {self.name}:{there - 1}" if there > 1 else self.name)
            )

    @classmethod
    def torch_module(cls) -> Any:
        """torch's module for these devices, such as torch.cuda."""
        import torch

        return getattr(torch, cls.torch_type or cls.name)

    @classmethod
    def device_count(cls) -> int:
        """The number of these devices that this machine has."""
        return int(cls.torch_module().device_count())

    @property
    def device(self) -> torch.device:
        import torch

        kind = self.torch_type or self.name
        return torch.device(kind) if kind == "cpu" else torch.device(kind, self.index or 0)

    def synchronize(self, *tensors: torch.Tensor) -> None:
        del tensors  # The device's queue is in order, so when it is empty, every tensor is written.
        if self.device.type != "cpu":
            import torch

            torch.accelerator.synchronize(self.device)

    def memory(self) -> MemoryUse:
        """What the device's allocator counts, or else the process's resident memory and why."""
        device, counter = self.device, f"{self.device.type.upper()} allocator"
        if device.type == "cpu":
            return process_memory()
        module = self.torch_module()
        if hasattr(module, "memory_allocated") and hasattr(module, "max_memory_allocated"):
            return MemoryUse(module.memory_allocated(device), module.max_memory_allocated(device), counter)
        import torch

        # torch raises it if the package's allocator has no statistics.
        with suppress(RuntimeError):
            used = torch.accelerator.memory_stats(device)
            if used:
                return MemoryUse(used["allocated_bytes.all.current"], used["allocated_bytes.all.peak"], counter)
        return replace(process_memory(), missing=f"neither torch.{device.type} nor its allocator counts memory")

    def generators(self) -> dict[str, Generator]:
        device, host = self.device, super().generators()
        if device.type == "cpu" or self.unsaved_generator():
            return host
        module = self.torch_module()
        own = partial(module.get_rng_state, device), partial(module.set_rng_state, device=device)
        return {**host, device.type: own}

    def unsaved_generator(self) -> str:
        kind, needed = self.device.type, ("get_rng_state", "set_rng_state")
        if kind == "cpu" or all(hasattr(self.torch_module(), name) for name in needed):
            return ""
        return f"torch.{kind} has no {' and '.join(needed)}, so a resumed run drops other values"

    def grad_scaler(self, policy: CastPolicy) -> torch.amp.GradScaler | None:
        import torch

        return torch.amp.GradScaler(self.device.type) if policy.compute == "float16" else None

    def check_compile_mode(self, mode: str) -> None:
        super().check_compile_mode(mode)
        if reason := why_no_compiler(self.device.type):
            raise UserError(f"torch_compile {mode!r} can't run here: {reason}; install it, or drop torch_compile")

    def compile(self, fn: F, mode: str | None = None) -> F:
        super().compile(fn, mode)
        program: Any = fn if mode is None else compiled(fn, "drop torch_compile", mode)
        return program

    def kernels(self) -> dict[str, Availability]:
        found = super().kernels()
        if "compile" in self.traits.kernels:
            reason = why_no_compiler(self.device.type)
            found["compile"] = Availability(not reason, reason or "portable by torch.compile, padded batches")
        return found

    def compiled_encoder(self, weights: EncoderWeights, policy: CastPolicy, **options: Any) -> PortableEncoder:
        """The kernel "compile". `options` are those of `PortableEncoder`.

        Raises:
            UserError: There is no compiler, or the dtype has 8 bits.
        """
        from ..kernels.packed.compiled import CompiledPortable

        if reason := why_no_compiler(self.device.type):
            raise UserError(f"kernel compile can't run: {reason}; install it, or set kernel: portable")
        if policy.eight_bit:
            raise UserError(f"kernel compile has no {policy.label}; set kernel: portable or auto")
        return self.portable_encoder(weights, policy, CompiledPortable, **options)
