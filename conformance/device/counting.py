"""Checks of what a backend remembers and counts: generators, memory, energy, compilations, threads."""

from __future__ import annotations

import ctypes
import gc
import math
import time
from collections.abc import Callable
from contextlib import suppress
from types import FunctionType

import torch
from torch.nn import functional

from ...backends import MemoryUse
from ...backends.host.memory import process_memory
from ..case import Checks, Device, Passed, UnsupportedError, ViolationError, require
from .placing import is_on

MEBIBYTE = 2**20
ALLOCATED = 128 * MEBIBYTE
# A counter of the process also sees what others allocate and free, but not in each try.
LEAST_GROWTH, MOST_GROWTH = 0.7, 1.6
MEMORY_TRIES = 3
# What is freed may leave the device a while later.
FREEING_SECONDS = 0.5
# Counters are refreshed less often than they can be read.
ENERGY_SECONDS = 3.0

check = Checks("device")


@check(
    "generators-host",
    "set_rng_state restores what rng_state returned: the host's generator draws the same numbers again.",
)
def resumes_on_host(device: Device) -> Passed:
    backend = device.backend
    torch.rand(3)
    saved = backend.rng_state()
    require(bool(saved), "rng_state is empty; it has at least the host's generator")
    for name, state in saved.items():
        form = f"the state of generator {name!r} is {state.dtype} on {state.device} instead of uint8 on the host"
        require(state.dtype == torch.uint8 and state.is_cpu, form)
    before = {name: state.clone() for name, state in saved.items()}
    first = torch.rand(5)
    backend.rng_state()
    for name, state in saved.items():
        require(torch.equal(state, before[name]), f"the saved state of {name!r} changed afterwards; it is no copy")
    for _ in range(2):
        torch.rand(7)
        backend.set_rng_state(saved)
        require(torch.equal(torch.rand(5), first), "after set_rng_state, torch.rand draws other numbers than before")
    return Passed()


@check(
    "generators-device",
    "set_rng_state restores what rng_state returned: dropout on the device drops the same values again.",
)
def resumes_on_device(device: Device) -> Passed:
    if reason := device.backend.unsaved_generator():
        raise UnsupportedError(reason)
    ones = device.backend.place(torch.ones(4096))

    def draw() -> torch.Tensor:
        return device.read(functional.dropout(ones, 0.5))[0]

    draw()
    saved = device.backend.rng_state()
    first, second = draw(), draw()
    require(not torch.equal(first, second), "dropout drops the same values twice in a row")
    draw()
    device.backend.set_rng_state(saved)
    for wanted in (first, second):
        require(torch.equal(draw(), wanted), "after set_rng_state, dropout drops other values than before")
    return Passed()


@check("generators-apart", "Dropout draws numbers of their own for all parts of a tensor, whatever computes them.")
def draws_apart(device: Device) -> Passed:
    (got,) = device.read(functional.dropout(device.backend.place(torch.ones(4096)), 0.5))
    parts = len(got.reshape(64, 64).unique(dim=0))
    require(parts == 64, f"dropout drops the same values again: of 64 parts of a tensor, {parts} differ")
    return Passed()


@check(
    "memory",
    "memory() grows and falls by about what is allocated and freed; its peak is at least what was in use.",
)
def counts_memory(device: Device) -> Passed:
    backend = device.backend
    if reason := backend.memory().missing:
        raise UnsupportedError(reason)
    # The first work on a device allocates memory of its own. What is kept is in use also where only tensors count.
    kept = backend.place(torch.ones(8)) + 1
    device.read(kept)
    for _ in range(MEMORY_TRIES - 1):
        with suppress(ViolationError):
            return _count_once(device)
    return _count_once(device)


def _count_once(device: Device) -> Passed:
    backend = device.backend
    _return_free_pages()
    resident, before = process_memory().current_bytes, _sound(backend.memory())
    # Tiles need no padding in this shape.
    held = torch.empty(ALLOCATED // 4 // 4096, 4096, device=backend.device).fill_(1.0)
    backend.step_boundary()
    backend.synchronize(held)
    after = _sound(backend.memory())
    whole = backend.info().memory_bytes
    most = f"the peak is {after.peak_bytes:,} bytes, and the device has {whole}"
    require(whole is None or after.peak_bytes <= whole, most)
    grown = after.current_bytes - before.current_bytes
    said = f"{ALLOCATED // MEBIBYTE} MiB were allocated, and the memory in use grew by {grown / MEBIBYTE:.2f} MiB"
    require(LEAST_GROWTH * ALLOCATED <= grown <= MOST_GROWTH * ALLOCATED, f"{said} ({after.scope})")
    del held
    freed = _sound(backend.memory())
    # Linux counts pages in batches, so its two figures of a process differ a little.
    fallen = after.current_bytes - freed.peak_bytes
    least = f"the peak is {fallen / MEBIBYTE:.2f} MiB below what was in use before memory was freed"
    require(fallen <= ALLOCATED // 100, least)
    detail = f"{grown / MEBIBYTE:.0f} MiB for {ALLOCATED // MEBIBYTE}, {after.scope}"
    returned = _returned(device, after.current_bytes)
    if returned >= LEAST_GROWTH * ALLOCATED:
        return Passed(detail=detail)
    if process_memory().current_bytes - resident > (1 - LEAST_GROWTH) * ALLOCATED:
        return Passed(detail=detail, lacks="the process keeps the memory that it has freed")
    said = f"{ALLOCATED // MEBIBYTE} MiB were freed, and the memory in use fell by {returned / MEBIBYTE:.2f} MiB"
    raise ViolationError(f"{said} ({after.scope})")


def _returned(device: Device, used: int) -> int:
    """By how many bytes the memory in use falls below `used` within FREEING_SECONDS."""
    end = time.monotonic() + FREEING_SECONDS
    while True:
        _return_free_pages()
        returned = used - _sound(device.backend.memory()).current_bytes
        if returned >= LEAST_GROWTH * ALLOCATED or time.monotonic() > end:
            return returned
        time.sleep(0.05)


def _return_free_pages() -> None:
    """Gives the system what this process has freed: the process doesn't grow by an allocation that reuses its pages."""
    gc.collect()
    # Of glibc alone.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _sound(use: MemoryUse) -> MemoryUse:
    require(bool(use.scope), "memory() doesn't say what it counts (scope)")
    require(use.current_bytes > 0, f"memory() says that {use.current_bytes} bytes are in use")
    numbers = f"its peak is {use.peak_bytes:,} bytes, and {use.current_bytes:,} are in use"
    require(use.peak_bytes >= use.current_bytes, f"memory() contradicts itself: {numbers}")
    return use


@check("energy", "energy() grows while the device works and never decreases, or says why it has no joules.")
def counts_energy(device: Device) -> Passed:
    first = device.backend.energy()
    missing = first.source.startswith("unavailable: ")
    claimed = f"energy() has {first.joules} joules and the source {first.source!r}"
    require((first.joules is None) == missing, f"{claimed}; the source begins with 'unavailable: ' if there are none")
    if first.joules is None:
        raise UnsupportedError(first.source)
    before, rounds, end = first.joules, 0, time.monotonic() + ENERGY_SECONDS
    while rounds < 5 or (before == first.joules and time.monotonic() < end):
        rounds += 1
        device.read(device.backend.place(torch.ones(256, 256)) @ device.backend.place(torch.ones(256, 256)))
        time.sleep(0.01)
        now = device.backend.energy().joules
        require(now is not None and math.isfinite(now) and now >= before, f"energy fell from {before} J to {now} J")
        assert now is not None, "that was required"
        before = now
    require(before > first.joules, f"energy stood still at {before} J while the device worked for {ENERGY_SECONDS:g} s")
    return Passed(detail=first.source)


@check("compile-count", "compile_count stands still on known shapes, and moves when the device compiles for a new one.")
def counts_compilations(device: Device) -> Passed:
    backend = device.backend
    compiled: Callable[[torch.Tensor], torch.Tensor] = backend.compile(_work)

    def run(rows: int) -> int:
        device.read(compiled(backend.place(torch.ones(rows, 8))))
        return backend.compile_count()

    run(3)
    before = run(3)
    require(before >= 0, f"compile_count is {before}")
    after = [run(3) for _ in range(3)][-1]
    require(after == before, f"compile_count moved from {before} to {after} on a shape that was known")
    if backend.static_shapes is None:
        return Passed(detail="the device compiles no program for each shape")
    new = run(5)
    require(new > after, f"compile_count stands still at {after}, though a program was compiled for a new shape")
    return Passed()


def _work(inputs: torch.Tensor) -> torch.Tensor:
    return (inputs * 2 + 1).sum(dim=-1)


@check("compile-count-torch", "compile_count moves when torch.compile compiles.")
def counts_torchs_compilations(device: Device) -> Passed:
    before = device.backend.compile_count()
    try:
        # torch compiles the same code only once in a process.
        fresh = FunctionType(_work.__code__.replace(), globals())
        torch.compile(fresh, backend="eager")(torch.ones(2, 3))
    except RuntimeError as error:
        raise UnsupportedError(f"torch.compile can't run here: {error}") from error
    after = device.backend.compile_count()
    require(after > before, f"torch.compile compiled a function, and compile_count stayed at {before}")
    return Passed()


@check("scalar", "scalar(value) multiplies as the number does; a new value compiles nothing.")
def gives_scalars(device: Device) -> Passed:
    backend = device.backend
    base = backend.place(torch.arange(4.0))
    counts = []
    # A few roundings of the dtype that the device multiplies.
    error = 4 * torch.finfo(getattr(torch, device.policies()[0].compute)).eps
    exact = (0.25, 0.0, 1.0, 0.5, 2.0)
    for value in (*exact, 1 / 3, 301.0, 1e-3):
        (got,) = device.read(base * backend.scalar(value))
        allowed = 0.0 if value in exact else error
        right = torch.allclose(got, torch.arange(4.0) * value, rtol=allowed, atol=0.0)
        require(right, f"0, 1, 2, 3 times scalar({value:g}) is {got.tolist()}")
        counts.append(backend.compile_count())
    require(len(set(counts)) == 1, f"new values compiled {counts[-1] - counts[0]} programs")
    scalar = backend.scalar(0.5)
    placed = not isinstance(scalar, torch.Tensor) or is_on(scalar, backend)
    require(placed, "scalar returns a tensor that isn't on the device")
    return Passed()


@check("threads", "single_threaded leaves the number of threads as it was.")
def restores_threads(device: Device) -> Passed:
    before = torch.get_num_threads()
    with device.backend.single_threaded():
        pass
    after = torch.get_num_threads()
    require(after == before, f"{before} threads became {after} after single_threaded")
    return Passed()
