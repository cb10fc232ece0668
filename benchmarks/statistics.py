"""Medians, their intervals and what is noise: small pure functions over numbers (rules 4, 7 and 8 of measuring).

Samples come as one list a process, all of the same length: blocks of one process share its memory layout, its
clocks and its luck, so they are not independent, and an interval must be taken over processes as well as blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

Samples = Sequence[Sequence[float]]

RESAMPLES = 10_000
LEVEL = 0.95
_NORMAL_QUANTILE = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A median with the bounds of its 95 % interval, in the unit of the samples."""

    median: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def rate(self, work: float) -> Interval:
        """`work` per unit of time where this interval is of a time: the bounds change places."""
        return Interval(work / self.median, work / self.high, work / self.low)


def quantile(values: Sequence[float], share: float) -> float:
    """The `share` quantile (0.5 is the median), linear between order statistics."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), share))


def median_interval(samples: Samples, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The median of all samples and its 95 % interval by hierarchical bootstrap: processes first, then blocks.

    One process gives an interval of the blocks within it, which says nothing about other processes.
    """
    data = _table(samples)
    medians = _resampled_medians(np.log(data), np.random.default_rng(seed), resamples)
    return _interval(float(np.median(data)), medians)


def ratio_interval(numerator: Samples, denominator: Samples, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The ratio of two medians and its 95 % interval; the two are resampled independently of each other."""
    above, below = _table(numerator), _table(denominator)
    generator = np.random.default_rng(seed)
    logs = [_resampled_medians(np.log(data), generator, resamples) for data in (above, below)]
    return _interval(float(np.median(above) / np.median(below)), logs[0] - logs[1])


def outliers(samples: Samples) -> list[tuple[int, int]]:
    """(process, block) of the samples beyond Tukey's fences (1.5 interquartile ranges). Labelled, never dropped."""
    data = _table(samples)
    first, third = np.quantile(data, [0.25, 0.75])
    reach = 1.5 * (third - first)
    beyond = (data < first - reach) | (data > third + reach)
    return [(int(process), int(block)) for process, block in np.argwhere(beyond)]


def is_quiet(times: Sequence[float], classes: Sequence[int], largest_drift: float = 0.02) -> bool:
    """Whether a series of step times has no slope beyond its noise.

    `classes` says which of the steps do the same work: the slope is that of the logarithms within the classes (each
    class keeps its own level), so that batches of different cost in turn are no drift. Quiet is a slope below twice
    its standard error, or a drift below `largest_drift` over the whole series. Too few steps to tell is not quiet.
    """
    log_times = np.log(np.asarray(times, dtype=np.float64))
    labels = np.asarray(classes)
    steps = np.arange(len(log_times), dtype=np.float64)
    free = len(steps) - len(np.unique(labels)) - 1
    if free < 1:
        return False
    for label in np.unique(labels):
        members = labels == label
        steps[members] -= steps[members].mean()
        log_times[members] -= log_times[members].mean()
    spread = float(steps @ steps)
    if spread == 0.0:
        return False
    slope = float(steps @ log_times) / spread
    residual = log_times - slope * steps
    error = math.sqrt(float(residual @ residual) / free / spread)
    return abs(slope) <= 2.0 * error or abs(slope) * len(steps) <= largest_drift


def drift(samples: Sequence[float]) -> float | None:
    """How much slower (above 0) or faster the last third of a process's blocks is than its first, as a share.

    None where that is within the noise or there are fewer than six blocks.
    """
    data = np.asarray(samples, dtype=np.float64)
    third = len(data) // 3
    if third < 2:
        return None
    first, last = data[:third], data[-third:]
    change = float(np.median(last) / np.median(first) - 1.0)
    apart = last.min() > first.max() or last.max() < first.min()
    return change if apart and abs(change) > 0.1 else None


def _table(samples: Samples) -> np.ndarray:
    """float64 (processes, blocks). Raises ValueError for nothing, processes of unequal length, or no positive time."""
    lengths = {len(row) for row in samples}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"samples must be the same number of blocks, at least one, of each process, not {lengths}")
    data = np.asarray(samples, dtype=np.float64)
    if not (np.isfinite(data) & (data > 0.0)).all():
        raise ValueError("samples must be positive, finite times")
    return data


def _interval(median: float, resampled_logs: np.ndarray) -> Interval:
    low, high = np.exp(np.quantile(resampled_logs, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0]))
    return Interval(median, min(float(low), median), max(float(high), median))


def _resampled_medians(data: np.ndarray, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """Medians of `resamples` tables of log times: processes drawn with replacement, then likewise their blocks."""
    processes, blocks = data.shape
    spread = _widened(data)
    chosen = generator.integers(processes, size=(resamples, processes, 1))
    drawn = generator.integers(blocks, size=(resamples, processes, blocks))
    return np.median(spread[chosen, drawn].reshape(resamples, -1), axis=1)


def _widened(data: np.ndarray) -> np.ndarray:
    """`data` (log times) with its processes moved apart as far as few processes hide their spread.

    A plain bootstrap of three processes covers 77 % where processes differ more than blocks do: it takes the spread
    of three numbers for that of all processes. The normal-theory remedy (Hesterberg, "What Teachers Should Know
    About the Bootstrap", 2015, section 4) widens by t / z * sqrt(n / (n - 1)). Here that applies only to the share of
    the spread between the processes' medians which their blocks' noise doesn't explain, so that processes which
    don't differ keep the plain bootstrap's interval. On logarithms, so that no bound of a time is negative. Simulated
    coverage for 3 x 9: 91 % to 97 % (see the tests).
    """
    processes, blocks = data.shape
    if processes < 2 or blocks < 2:
        return data
    medians = np.median(data, axis=1)
    deviations = medians - medians.mean()
    between = float(deviations @ deviations) / (processes - 1)
    if between == 0.0:
        return data
    residuals = data - medians[:, None]
    # The variance of a median of n normal values is pi / 2 times that of their mean.
    explained = float((residuals**2).sum()) / (processes * (blocks - 1)) * math.pi / 2.0 / blocks
    unexplained = max(0.0, 1.0 - explained / between)
    return data + unexplained * (student_widening(processes) - 1.0) * deviations[:, None]


def student_widening(processes: int) -> float:
    """How much further apart than they are `processes` draws of a normal value must be taken; 1 for a single one."""
    if processes < 2:
        return 1.0
    return _student_quantile(processes - 1) / _NORMAL_QUANTILE * math.sqrt(processes / (processes - 1))


def _student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: exact for 1 and 2, else Cornish and Fisher's expansion (within 1 %)."""
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 * math.sqrt(2.0 / (1.0 - 0.95**2))
    z = _NORMAL_QUANTILE
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
