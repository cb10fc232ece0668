"""Figures relative to the device's limits: shares of its peak, and the position on its roofline (rule 11).

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009. The bandwidth is
that of a copy as large as the step's traffic. A step that fits into a cache is thus compared with the cache, and any
other with main memory (Ilic, Pratas and Sousa, "Cache-aware Roofline model", IEEE CAL 13(1), 2014).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from statistics import median

from ..harness.document import Interval, Peaks, Work
from ..harness.statistics import ratio_interval
from .model import MeasuredTarget, Rates, Roofline, Share


def best(peaks: Iterable[Peaks]) -> Peaks:
    """The highest of several measurements of one device's peaks, for the product and for the matrix unit."""
    known = list(peaks)
    units = [one.unit for one in known if one.unit is not None]
    higher = max(known, key=lambda one: one.matmul_tflops)
    return higher.model_copy(update={"unit": max(units, key=lambda unit: unit.tflops, default=None)})


def share_of_peak(rates: Rates, peaks: Peaks) -> Share:
    """The rates as shares of the measured product, and of the matrix unit if it was measured in the same dtype."""
    useful, hardware = rates.model_tflops.median, rates.hardware_tflops.median
    shares = {"model": useful / peaks.matmul_tflops, "hardware": hardware / peaks.matmul_tflops}
    unit = peaks.unit_tflops
    return Share(**shares) if unit is None else Share(**shares, unit=useful / unit)


def roofline(work: Work, rates: Rates, peaks: Peaks) -> Roofline:
    """The position on the roofline, from the hardware FLOPs, the modelled bytes and the faster of the run's copies."""
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


def speed_ratio(before: MeasuredTarget, after: MeasuredTarget, seed: int) -> Interval:
    """How many times as fast `after` is, with an interval that no device can contradict."""
    return within_limits(ratio_interval(before.text_seconds, after.text_seconds, seed), before, after)


def within_limits(ratio: Interval, before: MeasuredTarget, after: MeasuredTarget) -> Interval:
    """The ratio of two speeds with bounds that the device can reach.

    Neither side can be faster than its hardware FLOPs at the peak's rate: bounds beyond that are cut.
    """
    slow, fast = (_least_seconds(target) for target in (before, after))
    old, new = (median(chain.from_iterable(target.text_seconds)) for target in (before, after))
    return Interval(
        median=ratio.median,
        low=min(ratio.median, max(ratio.low, slow / new)),
        high=max(ratio.median, min(ratio.high, old / fast)) if fast else ratio.high,
    )


def _least_seconds(target: MeasuredTarget) -> float:
    """Seconds a text at the peak's rate; 0 where the peak is not the device's, or is known to be too low."""
    if not target.real or target.peaks.contended:
        return 0.0
    return target.work.hardware_flops / target.work.samples / (target.peaks.compute_limit * 1e12)
