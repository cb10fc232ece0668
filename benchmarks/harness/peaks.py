"""The device's own limits, measured once in the run whose work is held against them (rule 11).

A vendor's figure stands beside a measured one where the backend knows it, and never instead of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch

from ...backends import Backend
from .document import Peaks, Unit
from .environment import is_contended, lost
from .measure import Clock

# A block is one fence. Short ones, because on a busy machine some of them run between two bursts of other work.
BLOCK_SECONDS = 0.02
SECONDS = 0.6
# How much longer to look for blocks that nobody contended.
MOST_SECONDS = 2.0
CLEAN_BLOCKS = 3
# A product this long hides the cost of starting it; larger ones are not tried.
LONG_ENOUGH_SECONDS = 0.02
PRODUCT_SIZES = (512, 1024, 2048, 4096, 8192)
COPY_BYTES = 256 * 2**20
LEAST_COPY_BYTES = 2**16
# How often a run measures a limit while other work contends each measurement of it.
MOST_MEASUREMENTS = 3


def measure_peaks(
    backend: Backend,
    dtype: str,
    clock: Clock = time.perf_counter_ns,
    step_bytes: float = COPY_BYTES,
    known: Sequence[Peaks] = (),
) -> Peaks:
    """The fastest block of large square products in `dtype` (TFLOP/s) and of copies (GB/s).

    The product is the smallest of PRODUCT_SIZES that takes 20 ms. The copies are of 256 MiB, and of half of
    `step_bytes` where that is less; their bytes are counted as read and as written. Takes about three seconds, more on
    a busy machine, and nothing for what is known.

    Args:
        known: What earlier processes of the run measured on this backend.
    """
    step_copy = min(COPY_BYTES, max(LEAST_COPY_BYTES, int(step_bytes / 2)))
    alike = [one for one in known if one.dtype == dtype]
    same = [one for one in alike if one.step_copy_bytes == step_copy]
    if _suffices(same):
        return max(same, key=lambda one: one.step_copy_gbps)
    begin = clock()
    if _suffices(alike):
        device = max(alike, key=lambda one: one.matmul_tflops)
    else:
        device = _device_peaks(backend, dtype, clock)
    if step_copy == COPY_BYTES:
        gbps, contended = device.copy_gbps, False
    else:
        gbps, contended = _copy_gbps(backend, step_copy, clock)
    return device.model_copy(
        update={
            "step_copy_gbps": gbps,
            "step_copy_bytes": step_copy,
            "contended": device.contended or contended,
            "seconds": (clock() - begin) / 1e9,
        }
    )


def _suffices(known: Sequence[Peaks]) -> bool:
    """Whether one of the measurements was uncontended, or a further one would hardly be."""
    return len(known) >= MOST_MEASUREMENTS or any(not one.contended for one in known)


def _device_peaks(backend: Backend, dtype: str, clock: Clock) -> Peaks:
    """What does not depend on the workload."""
    info = backend.info()
    tflops, size, products_contended = _matmul_tflops(backend, getattr(torch, dtype), clock)
    copy_gbps, copies_contended = _copy_gbps(backend, COPY_BYTES, clock)
    unit = backend.measured_unit_tflops()
    return Peaks(
        dtype=dtype,
        matmul_tflops=tflops,
        matmul_size=size,
        copy_gbps=copy_gbps,
        vendor_tflops=info.vendor_peak_tflops,
        vendor_gbps=info.vendor_bandwidth_gbps,
        seconds=0.0,
        contended=products_contended or copies_contended,
        step_copy_gbps=copy_gbps,
        step_copy_bytes=COPY_BYTES,
        unit=None if unit is None else Unit.of(unit),
    )


def _matmul_tflops(backend: Backend, dtype: torch.dtype, clock: Clock) -> tuple[float, int, bool]:
    generator = torch.Generator().manual_seed(0)
    for size in PRODUCT_SIZES:
        # Variance 1 / size keeps the values of chained products bounded.
        factor = backend.place((torch.randn(size, size, generator=generator) / size**0.5).to(dtype))

        def run(count: int, factor: torch.Tensor = factor) -> None:
            # Each product needs the one before, so that no lazy device can drop or merge any of them.
            product = factor
            for _ in range(count):
                product = product @ factor
            backend.step_boundary()
            backend.synchronize(product)

        once = _warm_seconds(run, clock)
        if once >= LONG_ENOUGH_SECONDS or size == PRODUCT_SIZES[-1]:
            break
    best, contended = _best_seconds(run, once, clock)
    return 2.0 * size**3 / best / 1e12, size, contended


def _copy_gbps(backend: Backend, size: int, clock: Clock) -> tuple[float, bool]:
    """GB/s of a copy of `size` bytes, read and written, and whether other work contended it."""
    source = backend.place(torch.ones(size // 4, dtype=torch.float32))
    target = torch.empty_like(source)

    def run(count: int) -> None:
        for _ in range(count):
            if backend.static_shapes is None:
                target.copy_(source)
            else:
                # A device that traces renames a buffer for a copy; negating one in place reads and writes as much.
                target.neg_()
                backend.step_boundary()
        backend.synchronize(target)

    best, contended = _best_seconds(run, _warm_seconds(run, clock), clock)
    return 2.0 * (size // 4 * 4) / best / 1e9, contended


def _warm_seconds(run: Callable[[int], None], clock: Clock) -> float:
    """Seconds of one execution after a first, untimed one."""
    run(1)
    start = clock()
    run(1)
    return (clock() - start) / 1e9


def _best_seconds(run: Callable[[int], None], once: float, clock: Clock) -> tuple[float, bool]:
    """The least mean seconds an execution of all blocks, and whether too few of them were undisturbed."""
    count = math.ceil(BLOCK_SECONDS / max(once, 1e-6))
    best, clean = math.inf, 0
    begin = clock()
    while True:
        before = lost()
        start = clock()
        run(count)
        stop = clock()
        best = min(best, (stop - start) / 1e9 / count)
        clean += not is_contended(before, lost(), (stop - start) / 1e9, torch.get_num_threads())
        spent = (stop - begin) / 1e9
        if spent >= (SECONDS if clean >= CLEAN_BLOCKS else MOST_SECONDS):
            return best, clean < CLEAN_BLOCKS
