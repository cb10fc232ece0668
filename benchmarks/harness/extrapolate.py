"""Extrapolates a long run from measured parts, with an interval: each part's mean times its number in the run.

Means are used instead of medians, since the total is a sum, in which slow steps on long texts count in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .document import Interval
from .statistics import RESAMPLES, interval, student_widening

# The epochs of an end-to-end run.
EPOCHS = 5


@dataclass(frozen=True)
class Part:
    """Measured seconds of one kind of step, and their number in the end-to-end run."""

    seconds: Sequence[float]
    count: int


@dataclass(frozen=True)
class Sampled:
    """One process's measurement of a run: the seconds of what happens once, and the parts to extrapolate."""

    once: float
    parts: tuple[Part, ...] = ()

    @property
    def total(self) -> float:
        """Seconds of the end-to-end run."""
        return self.once + sum(part.count * float(np.mean(part.seconds)) for part in self.parts)


def total_interval(processes: Sequence[Sampled], seed: int, resamples: int = RESAMPLES) -> Interval:
    """The mean total of the processes in seconds, and its 95 % interval by resampling processes, then their steps."""
    logs = _resampled_logs(processes, np.random.default_rng(seed), resamples)
    return interval(_mean(processes), logs)


def total_ratio(above: Sequence[Sampled], below: Sequence[Sampled], seed: int, resamples: int = RESAMPLES) -> Interval:
    """The ratio of two mean totals and its 95 % interval, with independent resampling."""
    generator = np.random.default_rng(seed)
    logs = _resampled_logs(above, generator, resamples) - _resampled_logs(below, generator, resamples)
    return interval(_mean(above) / _mean(below), logs)


def _mean(processes: Sequence[Sampled]) -> float:
    return float(np.mean([process.total for process in processes]))


def _resampled_logs(processes: Sequence[Sampled], generator: np.random.Generator, resamples: int) -> np.ndarray:
    """Logarithms of the mean total of processes drawn with replacement, float64 [resamples].

    A few processes underestimate their spread. Their totals are moved apart as in `statistics`, by the share of the
    spread that the noise of their steps doesn't explain.
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
