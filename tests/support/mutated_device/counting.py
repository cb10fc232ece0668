"""Devices that lose count: of random numbers, memory, energy, compilations, scalars or threads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import torch
from isotrain import UserError
from isotrain.backends import EnergyUse, MemoryUse
from isotrain.backends.base import Generator

from .base import Compiling, Mutant

T = TypeVar("T")


class ForgetsGenerator(Mutant):
    """set_rng_state restores nothing."""

    CLAUSE = ("generators-host", "generators-device", "recompute")

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        missing = set(self.generators()) - set(state)
        if missing:
            raise UserError(f"the saved state has no generator {sorted(missing)}")


class ForgetsDeviceGenerator(Mutant):
    """The device draws dropout from a generator of its own, which no saved state has."""

    CLAUSE = ("generators-device", "recompute")

    def place(self, value: T) -> T:
        placed: Any = super().place(value)
        if isinstance(placed, torch.Tensor) and placed.dtype == torch.float32 and placed.dim() in (1, 2):
            return placed.as_subclass(_OwnNoise)  # type: ignore[return-value]  # the mutation
        return placed


class _OwnNoise(torch.Tensor):
    """Tensors of a device whose dropout has a generator of its own."""

    _own: ClassVar[torch.Generator] = torch.Generator().manual_seed(5)

    @classmethod
    def _drawn(cls, count: int) -> torch.Tensor:
        return torch.rand(count, generator=cls._own)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.dropout:
            given = args[0].as_subclass(torch.Tensor)
            kept = cls._drawn(given.numel()).reshape(given.shape) >= kwargs["p"]
            return (given * kept / (1 - kwargs["p"])).as_subclass(cls)
        return super().__torch_function__(function, types, args, kwargs or {})


class AlikeCores(Mutant):
    """Each of 8 cores seeds its generator alike."""

    CLAUSE = ("generators-apart",)

    def place(self, value: T) -> T:
        placed: Any = super().place(value)
        if isinstance(placed, torch.Tensor) and placed.shape == (4096,):
            return placed.as_subclass(_AlikeNoise)  # type: ignore[return-value]  # the mutation
        return placed


class _AlikeNoise(_OwnNoise):
    """Tensors of a device of 8 cores which draw the same numbers."""

    @classmethod
    def _drawn(cls, count: int) -> torch.Tensor:
        return torch.rand(count // 8).repeat(8)


class SharedState(Mutant):
    """Every saved state is the same memory."""

    CLAUSE = ("generators-host",)
    _saved: ClassVar[torch.Tensor] = torch.get_rng_state()

    def generators(self) -> dict[str, Generator]:
        return {"cpu": (lambda: self._saved.copy_(torch.get_rng_state()), torch.set_rng_state)}


class ConstantDropout(Mutant):
    """Every fence puts the generator back, so that dropout drops the same values in every step."""

    CLAUSE = ("generators-device",)

    def step_boundary(self) -> None:
        torch.manual_seed(0)


class ZeroMemory(Mutant):
    """memory() counts nothing."""

    CLAUSE = ("memory",)

    def memory(self) -> MemoryUse:
        return MemoryUse(0, 0, "nothing")


class Kibibytes(Mutant):
    """memory() is in KiB."""

    CLAUSE = ("memory",)

    def memory(self) -> MemoryUse:
        use = super().memory()
        return replace(use, current_bytes=use.current_bytes // 1024, peak_bytes=use.peak_bytes // 1024)


class LowPeak(Mutant):
    """The peak is what was in use when the backend was opened."""

    CLAUSE = ("memory",)

    def memory(self) -> MemoryUse:
        use = super().memory()
        return replace(use, peak_bytes=use.current_bytes // 2)


class DoubledMemory(Mutant):
    """memory() counts everything twice."""

    CLAUSE = ("memory",)

    def memory(self) -> MemoryUse:
        use = super().memory()
        return replace(use, current_bytes=2 * use.current_bytes, peak_bytes=2 * use.peak_bytes)


class NeverFrees(Mutant):
    """The memory in use is its peak."""

    CLAUSE = ("memory",)
    _most: ClassVar[int] = 0

    def memory(self) -> MemoryUse:
        now = super().memory().current_bytes
        type(self)._most = max(self._most, now)
        return MemoryUse(self._most, self._most, "the board")


class ConstantPeak(Mutant):
    """The peak is the largest number of 60 bits."""

    CLAUSE = ("memory",)

    def memory(self) -> MemoryUse:
        return replace(super().memory(), peak_bytes=2**60 - 1)


class FallingEnergy(Mutant):
    """A counter of 32 bits that wraps."""

    CLAUSE = ("energy",)
    _reading: ClassVar[float] = 100.0

    def energy(self) -> EnergyUse:
        type(self)._reading -= 1.0
        return EnergyUse(self._reading, "the board")


class ConstantEnergy(Mutant):
    """A counter that stands still."""

    CLAUSE = ("energy",)

    def energy(self) -> EnergyUse:
        return EnergyUse(5.0, "the board")


class CoarseEnergy(Mutant):
    """A right counter that is refreshed ten times a second."""

    def energy(self) -> EnergyUse:
        return EnergyUse(time.monotonic() // 0.1, "the board")


class SilentEnergy(Mutant):
    """No joules, and no reason."""

    CLAUSE = ("energy",)

    def energy(self) -> EnergyUse:
        return EnergyUse(None, "")


class StandingCounter(Compiling):
    """The device compiles, and counts nothing."""

    CLAUSE = ("compile-count",)

    def device_compilations(self) -> int:
        return 0


class CountsCalls(Compiling):
    """The counter counts executions."""

    CLAUSE = ("compile-count", "scalar")
    _count: ClassVar[int] = 0

    def device_compilations(self) -> int:
        type(self)._count += 1
        return self._count


class ForgetsTorch(Mutant):
    """compile_count is the device's own, without torch's."""

    CLAUSE = ("compile-count-torch",)

    def compile_count(self) -> int:
        return 0


class WrongScalar(Mutant):
    """A scalar goes through int."""

    CLAUSE = ("scalar",)

    def scalar(self, value: float) -> float:
        return float(int(value))


class ShortScalar(Mutant):
    """A scalar goes through bfloat16."""

    CLAUSE = ("scalar",)

    def scalar(self, value: float) -> float:
        return float(torch.tensor(value, dtype=torch.bfloat16))


class KeepsOneThread(Mutant):
    """The threads aren't given back."""

    CLAUSE = ("threads",)

    @contextmanager
    def single_threaded(self) -> Iterator[None]:
        torch.set_num_threads(torch.get_num_threads() + 1)
        yield


class UnwrittenMemory(Mutant):
    """memory() isn't written yet."""

    CLAUSE = ("memory",)

    def memory(self) -> MemoryUse:
        raise NotImplementedError("later")
