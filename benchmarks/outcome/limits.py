"""What a device's own limits make of what it reached: shares of its peak, and the place under its roof (rule 11).

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009. Bandwidth is
that of a copy as large as what the step must move: a step that fits a cache is held against the cache, and against main
memory where it doesn't (Ilic, Pratas and Sousa, "Cache-aware Roofline model", IEEE CAL 13(1), 2014).
"""

from __future__ import annotations

from collections.abc import Iterable

from ..harness.document import Peaks, Work
from .model import Rates, Roofline, Share


def best(peaks: Iterable[Peaks]) -> Peaks:
    """The highest of measurements of one device's peaks: of the product, and of the matrix unit by itself."""
    known = list(peaks)
    units = [one.unit for one in known if one.unit is not None]
    higher = max(known, key=lambda one: one.matmul_tflops)
    return higher.model_copy(update={"unit": max(units, key=lambda unit: unit.tflops, default=None)})


def share_of_peak(rates: Rates, peaks: Peaks) -> Share:
    """What the rates are of the measured product, and of the matrix unit where it was measured in the same dtype."""
    useful, hardware = rates.model_tflops.median, rates.hardware_tflops.median
    shares = {"model": useful / peaks.matmul_tflops, "hardware": hardware / peaks.matmul_tflops}
    unit = peaks.unit_tflops
    return Share(**shares) if unit is None else Share(**shares, unit=useful / unit)


def roofline(work: Work, rates: Rates, peaks: Peaks) -> Roofline:
    """The place under the roof, from the hardware FLOPs, the modelled bytes and the faster of the run's copies."""
    gbps = max(peaks.copy_gbps, peaks.step_copy_gbps)
    intensity = work.hardware_flops / work.moved_bytes
    compute, memory = peaks.compute_limit, intensity * gbps / 1e3
    roof = min(compute, memory)
    return Roofline(
        intensity_flop_per_byte=intensity,
        roof_tflops=roof,
        share=rates.hardware_tflops.median / roof,
        bound="compute" if compute <= memory else "memory",
        bandwidth_gbps=gbps,
    )
