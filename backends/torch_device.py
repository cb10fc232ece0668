"""Devices that torch drives eagerly: the host, and every accelerator of `torch.accelerator`.

A subclass of `TorchDevice` for another device (mps, xpu, a package's own) needs a name, `probe` and `cast_policy`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch

from .. import UserError
from ..kernels.words import count
from .base import Backend, Generator
from .host.memory import process_memory
from .types import MemoryUse


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
                f"{self.name}:0 to {self.name}:{there - 1}"
            )

    @classmethod
    def device_count(cls) -> int:
        """The number of these devices that this machine has."""
        return int(torch.get_device_module(cls.torch_type or cls.name).device_count())

    @property
    def device(self) -> torch.device:
        kind = self.torch_type or self.name
        return torch.device(kind) if kind == "cpu" else torch.device(kind, self.index or 0)

    def synchronize(self, *tensors: torch.Tensor) -> None:
        del tensors  # The device's queue is in order, so when it is empty, every tensor is written.
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def memory(self) -> MemoryUse:
        if self.device.type == "cpu":
            return process_memory()
        return MemoryUse(
            torch.accelerator.memory_allocated(self.device),
            torch.accelerator.max_memory_allocated(self.device),
            f"{self.device.type.upper()} allocator",
        )

    def generators(self) -> dict[str, Generator]:
        device = self.device
        if device.type == "cpu":
            return super().generators()
        module = torch.get_device_module(device)
        own = partial(module.get_rng_state, device), partial(module.set_rng_state, device=device)
        return {**super().generators(), device.type: own}
