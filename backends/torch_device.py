"""Devices that torch drives eagerly: the host, and every accelerator of `torch.accelerator`.

A subclass of `TorchDevice` for another device (mps, xpu, a package's own) needs a name, `probe` and `cast_policy`.
"""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from .base import Backend, Generator
from .types import CastPolicy, DeviceInfo, MemoryUse


class TorchDevice(Backend):
    """A device of torch, by default of the type that the backend is named after."""

    @property
    def device(self) -> torch.device:
        return torch.device(self.name, self.index or 0)

    def info(self) -> DeviceInfo:
        return DeviceInfo(self.name, str(self.device), f"{self.name} device {self.index or 0}", versions=versions())

    def synchronize(self, *tensors: torch.Tensor) -> None:
        del tensors  # The device's queue is in order, so when it is empty, every tensor is written.
        torch.accelerator.synchronize(self.device)

    def memory(self) -> MemoryUse:
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

    def autocast(self, policy: CastPolicy) -> AbstractContextManager[Any]:
        compute = getattr(torch, policy.compute)
        return torch.autocast(self.device.type, dtype=compute, enabled=policy.compute != policy.accumulate)


def versions() -> dict[str, str]:
    """The versions of torch and Python, for results."""
    return {"torch": torch.__version__, "python": platform.python_version()}
