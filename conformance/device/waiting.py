"""Checks that the device's fence waits for everything whose time is measured and whose values are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from ..case import Checks, Device, Passed, ViolationError, require
from .placing import same_bits

# Values that were read too early have changed after so many seconds.
PAUSE_SECONDS = 0.05
# Work that takes less can't be told from the time that a copy takes.
LEAST_SECONDS = 0.02
# The share of the work's time that reading its result may take after the fence.
LARGEST_LATE_SHARE = 0.5
# Other work on the machine may delay a reading, but not each one.
TRIES = 3
WIDTH = 1024

check = Checks("device")


def _require_settled(tensors: Sequence[torch.Tensor], what: str) -> list[torch.Tensor]:
    """Requires that the values of `tensors` don't change any more, and returns them on the host."""
    first = [tensor.detach().cpu().clone() for tensor in tensors]
    time.sleep(PAUSE_SECONDS)
    for tensor, before in zip(tensors, first, strict=True):
        settled = same_bits(tensor.detach().cpu(), before)
        require(settled, f"{what} changed within {PAUSE_SECONDS:g} s after the fence had returned")
    return first


@check("fence-copies", "When synchronize(tensors) returns, placed copies are complete: values don't change any more.")
def waits_for_copies(device: Device) -> Passed:
    source, placed = _copied(device)
    device.backend.synchronize(placed)
    _require_copied(source, placed)
    return Passed()


def _copied(device: Device) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor, and its copy on the device, without a fence."""
    source = torch.randn(256, 256, generator=device.generator())
    return source, device.backend.place(source)


def _require_copied(source: torch.Tensor, placed: torch.Tensor) -> None:
    (got,) = _require_settled([placed], "a placed tensor")
    require(same_bits(got, source), "after the fence, a placed tensor has other values than its source")


@check("fence-work", "When synchronize(tensors) returns, the work for them is done: reading them waits for nothing.")
def waits_for_work(device: Device) -> Passed:
    backend = device.backend
    # Products of such matrices neither overflow nor vanish.
    factor = backend.place(torch.randn(WIDTH, WIDTH, generator=device.generator()) / WIDTH**0.5)

    def chain(length: int) -> torch.Tensor:
        product = factor
        for _ in range(length):
            product = product @ factor
        backend.step_boundary()
        return product

    for length in (4, 32, 256):
        backend.synchronize(chain(length))
        waited, read = _timed(device, partial(chain, length))
        if waited + read >= LEAST_SECONDS:
            break
    else:
        return Passed(lacks="the device is too fast to time its fence")
    for _ in range(TRIES):
        if read <= LARGEST_LATE_SHARE * (waited + read):
            return Passed(detail=f"{waited * 1e3:.0f} ms until the fence, {read * 1e3:.1f} ms to read")
        waited, read = _timed(device, lambda: chain(length))
    raise ViolationError(
        f"{length} products took {waited * 1e3:.0f} ms until the fence returned, and then {read * 1e3:.0f} ms to read"
    )


def _timed(device: Device, work: Callable[[], torch.Tensor]) -> tuple[float, float]:
    """Seconds of the work until its fence returns, and of the reading after it."""
    start = time.perf_counter_ns()
    result = work()
    device.backend.synchronize(result)
    fenced = time.perf_counter_ns()
    result.cpu()
    return (fenced - start) / 1e9, (time.perf_counter_ns() - fenced) / 1e9


@check(
    "fence-parameters",
    "When synchronize(parameters) returns after a step, the step has updated them, though its loss was ready before.",
)
def waits_for_parameters(device: Device) -> Passed:
    module = _trained(device)
    device.backend.synchronize(*module.parameters())
    _require_settled(list(module.parameters()), "the parameters")
    return Passed()


@check("fence-all", "When synchronize() without tensors returns, all work is done, and placed copies are complete.")
def waits_for_all(device: Device) -> Passed:
    module = _trained(device)
    device.backend.synchronize()
    _require_settled(list(module.parameters()), "the parameters")
    source, placed = _copied(device)
    device.backend.synchronize()
    _require_copied(source, placed)
    return Passed()


def _trained(device: Device) -> nn.Module:
    """A module after three steps as training makes them, without a fence."""
    backend = device.backend
    module = backend.place(nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 8)))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, **backend.adam_options())
    backend.set_learning_rate(optimizer, 1e-2)
    backend.prepare_optimizer(optimizer)

    def step(inputs: torch.Tensor) -> torch.Tensor:
        loss = module(inputs).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    run = backend.capture_step(step, optimizer)
    inputs = backend.place(torch.randn(32, 64, generator=device.generator()))
    for _ in range(3):
        loss = run(inputs)
        backend.step_boundary()
    loss.cpu()
    return module
