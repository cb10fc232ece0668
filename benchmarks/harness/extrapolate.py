"""From a part of a long run to its whole, with an interval: sums of measured parts times how often each occurs.

Means, not medians: what is extrapolated is a sum, and a step on long texts counts in it with all its length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .document import Interval
from .statistics import LEVEL, RESAMPLES, student_widening

# Of an end-to-end run.
EPOCHS = 5


@dataclass(frozen=True)
class Part:
    """Measured seconds of one kind of step, and how many of them the end-to-end run has."""

    seconds: Sequence[float]
    count: int


@dataclass(frozen=True)
class Sampled:
    """One process's measurement of a run: what happens once (seconds), and the parts that are extrapolated."""

    once: float
    parts: tuple[Part, ...] = ()

    @property
    def total(self) -> float:
        """Seconds of the end-to-end run."""
        return self.once + sum(part.count * float(np.mean(part.seconds)) for part in self.parts)


def total_interval(processes: Sequence[Sampled], seed: int, resamples: int = RESAMPLES) -> Interval:
    """The mean total of the processes, with its 95 % interval: processes are resampled, then each one's steps."""
    logs = _resampled_logs(processes, np.random.default_rng(seed), resamples)
    return _interval(_mean(processes), logs)


def total_ratio(above: Sequence[Sampled], below: Sequence[Sampled], seed: int, resamples: int = RESAMPLES) -> Interval:
    """The ratio of two mean totals with its 95 % interval, the two resampled independently of each other."""
    generator = np.random.default_rng(seed)
    logs = _resampled_logs(above, generator, resamples) - _resampled_logs(below, generator, resamples)
    return _interval(_mean(above) / _mean(below), logs)


def _mean(processes: Sequence[Sampled]) -> float:
    return float(np.mean([process.total for process in processes]))


def _resampled_logs(processes: Sequence[Sampled], generator: np.random.Generator, resamples: int) -> np.ndarray:
    """Logarithms (float64 [resamples]) of the mean total of processes drawn with replacement.

    Few processes hide their spread: they are moved apart as `statistics` does it, by the share of it that the noise of
    their steps doesn't explain.
    """
    drawn = np.empty((len(processes), resamples))
    for number, process in enumerate(processes):
        total = np.full(resamples, process.once)
        for part in process.parts:
            seconds = np.asarray(part.seconds, dtype=np.float64)
            total += part.count * seconds[generator.integers(len(seconds), size=(resamples, len(seconds)))].mean(axis=1)
        drawn[number] = np.log(total)
    deviations = np.log([process.total for process in processes])
    deviations -= deviations.mean()
    between = float(deviations @ deviations) / max(1, len(processes) - 1)
    unexplained = max(0.0, 1.0 - float(drawn.var(axis=1).mean()) / between) if between > 0.0 else 0.0
    drawn = np.exp(drawn + unexplained * (student_widening(len(processes)) - 1.0) * deviations[:, None])
    chosen = generator.integers(len(processes), size=(len(processes), resamples))
    return np.log(np.take_along_axis(drawn, chosen, axis=0).mean(axis=0))


def _interval(middle: float, logs: np.ndarray) -> Interval:
    low, high = np.exp(np.quantile(logs, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0]))
    if not math.isfinite(middle) or middle <= 0.0:
        raise ValueError("totals must be positive, finite times")
    return Interval(median=middle, low=min(float(low), middle), high=max(float(high), middle))
