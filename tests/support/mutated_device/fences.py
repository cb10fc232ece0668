"""Devices that work while the host goes on, and whose fence does not wait for all of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from isotrain.backends.cpu import CpuBackend
from isotrain.conformance.device import waiting

from .base import Mutant, mapped

T = TypeVar("T")
LATE_SECONDS = 0.03


class LateCopies(Mutant):
    """A right device: copies take a while, and its fence waits for them."""

    def __init__(self, index: int | None = None, options: Any = None) -> None:
        super().__init__(index, options)
        self._running: list[threading.Thread] = []

    def place(self, value: T) -> T:
        def later(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.shape != (256, 256):
                return tensor
            target = torch.zeros_like(tensor)
            self._start(lambda: target.copy_(tensor))
            return target

        return mapped(super().place(value), later)

    def synchronize(self, *tensors: torch.Tensor) -> None:
        for thread in self._running:
            thread.join()
        self._running.clear()

    def _start(self, work: Callable[[], object]) -> None:
        def late() -> None:
            time.sleep(LATE_SECONDS)
            work()

        self._running.append(threading.Thread(target=late, daemon=True))
        self._running[-1].start()


class NeverWaitsForCopies(LateCopies):
    """The fence returns at once."""

    CLAUSE: ClassVar[tuple[str, ...]] = ("fence-copies", "fence-all")

    def synchronize(self, *tensors: torch.Tensor) -> None:
        pass


class ForgetsCopies(NeverWaitsForCopies):
    """The fence waits for copies if it is given tensors; without any it returns at once."""

    CLAUSE = ("fence-all",)

    def synchronize(self, *tensors: torch.Tensor) -> None:
        if tensors:
            LateCopies.synchronize(self)


class LateSteps(LateCopies):
    """A right device: a step's update takes a while after its loss is there, and its fence waits for it."""

    def place(self, value: T) -> T:
        return CpuBackend.place(self, value)

    def capture_step(
        self, step: Callable[..., torch.Tensor], optimizer: torch.optim.Optimizer
    ) -> Callable[..., torch.Tensor]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        def run(*tensors: torch.Tensor) -> torch.Tensor:
            self.synchronize()
            before = [parameter.detach().clone() for parameter in parameters]
            loss = step(*tensors)
            updated = [parameter.detach().clone() for parameter in parameters]
            _put(parameters, before)
            self._start(lambda: _put(parameters, updated))
            return loss

        return run


class WaitsForLoss(LateSteps):
    """The fence returns when the loss is there."""

    CLAUSE: ClassVar[tuple[str, ...]] = ("fence-parameters", "fence-all")

    def capture_step(
        self, step: Callable[..., torch.Tensor], optimizer: torch.optim.Optimizer
    ) -> Callable[..., torch.Tensor]:
        late = super().capture_step(step, optimizer)

        def run(*tensors: torch.Tensor) -> torch.Tensor:
            LateCopies.synchronize(self)
            return late(*tensors)

        return run

    def synchronize(self, *tensors: torch.Tensor) -> None:
        pass


class NeedsTensors(WaitsForLoss):
    """The fence waits for the tensors that it is given; without any it returns at once."""

    CLAUSE = ("fence-all",)

    def synchronize(self, *tensors: torch.Tensor) -> None:
        if tensors:
            LateSteps.synchronize(self)


class _Unread(torch.Tensor):
    """A result whose reading waits for the work that the fence should have waited for."""

    def cpu(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        time.sleep(4 * LATE_SECONDS)
        return super().cpu(*args, **kwargs).as_subclass(torch.Tensor)


class EmptyFence(Mutant):
    """The fence returns at once; reading a large product waits for the work, as an asynchronous device's does."""

    CLAUSE = ("fence-work",)

    def place(self, value: T) -> T:
        placed: Any = super().place(value)
        if isinstance(placed, torch.Tensor) and placed.shape == (waiting.WIDTH, waiting.WIDTH):
            return (placed * 0).as_subclass(_Unread)  # type: ignore[return-value]  # the mutation
        return placed


def _put(parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
