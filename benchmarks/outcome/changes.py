"""Where a series of speeds changes its level, and whether it creeps.

Change points by E-divisive (Matteson and James, "A Nonparametric Approach for Multiple Change Point Analysis of
Multivariate Data", 2014), as Apache Otava uses it: the series is split where the energy distance between its two sides
is largest, and each side again, as long as a permutation test finds the split. The test assumes no distribution, so
outliers don't raise the rate of false alarms. Otava itself pins numpy and needs clients of Slack and BigQuery. ruptures
splits by a penalty, which fits one kind of noise: with 5 variances x log n, PELT found changes in 3 of 200 series of
normal noise and in 79 of 200 with outliers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SEED = 23
# A split is found where at most this share of shuffled series splits as clearly.
LEVEL = 0.01
SHUFFLES = 499
# Results on either side of a split: one alone may be an outlier.
LEAST_PART = 2
# Of fewer results, too many shuffles split as clearly as any change does.
LEAST_RESULTS = 12


@dataclass(frozen=True)
class Fit:
    """How speeds went: level by level, or in a creep.

    splits: indices at which a new level starts. levels: the median of each of them, or the two ends of the creep.
    creep: the factor from one result to the next; None where levels describe the series better.
    """

    splits: tuple[int, ...]
    levels: tuple[float, ...]
    creep: float | None = None


def fit(speeds: list[float], least_effect: float) -> Fit:
    """The levels of a series, or its creep.

    Args:
        speeds: Positive speeds, oldest first.
        least_effect: The least change of a level that counts, as a share.

    Returns:
        A single level where nothing changed. A creep only where a change point test finds a change, too, and a line
        describes it better by the Bayesian information criterion.
    """
    logs = np.log(np.asarray(speeds, dtype=np.float64))
    enough = len(logs) >= LEAST_RESULTS
    splits = _splits(logs, least_effect, np.random.default_rng(SEED)) if enough else []
    parts = np.split(logs, splits)
    if splits:
        steps = np.arange(len(logs))
        slope, start = np.polyfit(steps, logs, 1)
        line = start + slope * steps
        by_levels = _criterion(np.concatenate([part - part.mean() for part in parts]), 2 * len(parts) - 1)
        if _criterion(logs - line, 2) < by_levels:
            return Fit((), (float(np.exp(line[0])), float(np.exp(line[-1]))), float(np.exp(slope)))
    return Fit(tuple(splits), tuple(float(np.exp(np.median(part))) for part in parts))


def _splits(logs: np.ndarray, least_effect: float, generator: np.random.Generator, start: int = 0) -> list[int]:
    """The indices at which `logs` (float64 [n]) change, each counted from `start`."""
    if len(logs) < 2 * LEAST_PART:
        return []
    distances = np.abs(logs[:, None] - logs[None, :])
    at, energy = _best_split(distances)
    left, right = logs[:at], logs[at:]
    if abs(np.median(right) - np.median(left)) <= np.log1p(least_effect):
        return []
    clearer, allowed = 0, LEVEL * (SHUFFLES + 1) - 1
    for _ in range(SHUFFLES):
        order = generator.permutation(len(logs))
        # Sums in another order differ in their last digits.
        clearer += _best_split(distances[np.ix_(order, order)])[1] >= energy * (1 - 1e-9)
        if clearer > allowed:
            return []
    return [
        *_splits(left, least_effect, generator, start),
        start + at,
        *_splits(right, least_effect, generator, start + at),
    ]


def _best_split(distances: np.ndarray) -> tuple[int, float]:
    """The index with the largest energy distance between what is before and from it on, and that distance.

    distances: between all pairs of n values, float64 [n, n]. The distance is scaled by the sizes of both sides.
    """
    n = len(distances)
    before = np.arange(1, n)
    after = n - before
    rows = distances.sum(axis=1).cumsum()[:-1]
    within_left = 2.0 * np.tril(distances).sum(axis=1).cumsum()[:-1]
    between = rows - within_left
    within_right = distances.sum() - rows - between
    means = 2.0 * between / (before * after) - within_left / before**2 - within_right / after**2
    energies = (before * after / n * means)[LEAST_PART - 1 : n - LEAST_PART]
    best = int(energies.argmax())
    return best + LEAST_PART, float(energies[best])


def _criterion(residuals: np.ndarray, parameters: int) -> float:
    """The Bayesian information criterion, but for a constant: the smaller, the better the description."""
    n = len(residuals)
    return float(n * np.log(max(residuals @ residuals / n, 1e-300)) + parameters * np.log(n))
