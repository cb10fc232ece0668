"""The limits of a device, measured once in the same run as the work that is compared with them (rule 11).

If the backend knows the vendor's figure, it is shown beside the measured one, never instead of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch

from ...backends import Backend
from ...kernels.packed.eight_bit import FORMATS, rounded_rows
from .document import Peaks, Unit
from .environment import is_contended, lost
from .measure import Clock

# Each block ends in a fence. Blocks are short, so that on a busy machine some run between two bursts of other work.
BLOCK_SECONDS = 0.02
SECONDS = 0.6
# The longest search for blocks that weren't contended.
MOST_SECONDS = 2.0
CLEAN_BLOCKS = 3
# A product that takes this long hides its launch cost, so larger ones aren't tried.
LONG_ENOUGH_SECONDS = 0.02
PRODUCT_SIZES = (512, 1024, 2048, 4096, 8192)
COPY_BYTES = 256 * 2**20
LEAST_COPY_BYTES = 2**16
# How often a run measures a limit while other work contends each measurement of it.
MOST_MEASUREMENTS = 3

Multiply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def measure_peaks(
    backend: Backend,
    dtype: str,
    clock: Clock = time.perf_counter_ns,
    step_bytes: float = COPY_BYTES,
    known: Sequence[Peaks] = (),
) -> Peaks:
    """Measures the fastest block of large square products in `dtype` (TFLOP/s) and of copies (GB/s).

    The product is the smallest of PRODUCT_SIZES that takes 20 ms. The copies are of 256 MiB, and of half of
    `step_bytes` if that is less. Their bytes count as read and as written. This takes about three seconds, or more on a
    busy machine. What is known takes no time.

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
    tflops, size, products_contended = _matmul_tflops(backend, dtype, clock)
    copy_gbps, copies_contended = _copy_gbps(backend, COPY_BYTES, clock)
    unit = backend.measured_unit_tflops(dtype)
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


def _matmul_tflops(backend: Backend, dtype: str, clock: Clock) -> tuple[float, int, bool]:
    generator = torch.Generator().manual_seed(0)
    for size in PRODUCT_SIZES:
        # A variance of 1 / size keeps the values of chained products bounded.
        random = torch.randn(size, size, generator=generator) / size**0.5
        multiply: Multiply = torch.matmul
        if dtype not in FORMATS:
            random = random.to(getattr(torch, dtype))
        else:
            multiply = _int8_product if dtype == "int8" else _float8_product
            random = rounded_rows(random, FORMATS[dtype])[0]
        factor = backend.place(random)

        def run(count: int, factor: torch.Tensor = factor, multiply: Multiply = multiply) -> None:
            # Each product needs the previous one, so that no lazy device can drop or merge any of them.
            product = factor
            for _ in range(count):
                product = multiply(product, factor)
            backend.step_boundary()
            backend.synchronize(product)

        once = _warm_seconds(run, clock)
        if once >= LONG_ENOUGH_SECONDS or size == PRODUCT_SIZES[-1]:
            break
    best, contended = _best_seconds(run, once, clock)
    return 2.0 * size**3 / best / 1e12, size, contended


def _int8_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    # Dropping the upper bits leaves random numbers.
    return torch._int_mm(left, right.T).to(left.dtype)


def _float8_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    one = torch.ones((), device=left.device)
    product = torch._scaled_mm(left, right.T, one, one, out_dtype=torch.bfloat16)
    # Its values are in the thousands, and the format ends at 448.
    return product.mul_(2.0**-10).to(left.dtype)


def _copy_gbps(backend: Backend, size: int, clock: Clock) -> tuple[float, bool]:
    """GB/s of a copy of `size` bytes, read and written, and whether other work contended it."""
    source = backend.place(torch.ones(size // 4, dtype=torch.float32))
    target = torch.empty_like(source)

    def run(count: int) -> None:
        for _ in range(count):
            if backend.static_shapes is None:
                target.copy_(source)
            else:
                # A tracing device only renames a buffer for a copy. Negating it in place reads and writes as much.
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
    """The mean seconds per execution of the fastest block, and whether too few blocks were uncontended."""
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
