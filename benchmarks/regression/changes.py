"""Where a series of speeds changes its level, and whether it creeps.

Change points are found by E-divisive (Matteson and James, "A Nonparametric Approach for Multiple Change Point Analysis
of Multivariate Data", 2014), as in Apache Otava: the series is split where the energy distance between its two sides is
largest, then each side again, as long as a permutation test confirms the split. The test assumes no distribution, so
outliers don't raise the rate of false alarms. Otava itself pins numpy and needs clients of Slack and BigQuery. ruptures
splits by a penalty, which fits one kind of noise: with 5 variances x log n, PELT found changes in 3 of 200 series of
normal noise and in 79 of 200 with outliers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

SEED = 23
# A split is found where at most this share of shuffled series splits as clearly.
LEVEL = 0.01
SHUFFLES = 499
# Results on either side of a split. A single one may be an outlier.
LEAST_PART = 2
# With fewer results, too many shuffles split as clearly as a change.
LEAST_RESULTS = 12


@dataclass(frozen=True)
class Fit:
    """A series of speeds, described by levels or by a creep.

    Attributes:
        splits: Indices at which a new level starts.
        levels: The median of each level, or the two ends of the creep.
        creep: The factor from one result to the next, or None if levels describe the series better.
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
        A single level if nothing changed, and none without speeds. A creep only if the test of change points also finds
        a change, and a line describes it better by the Bayesian information criterion.
    """
    if not speeds:
        return Fit((), ())
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
    # A search for both at once would find a change in the newest few results late.
    cuts = _cuts(logs, False, least_effect, generator) or _cuts(logs, True, least_effect, generator)
    if not cuts:
        return []
    bounds = [0, *cuts, len(logs)]
    found = [inner for low, high in pairwise(bounds) for inner in _splits(logs[low:high], least_effect, generator, low)]
    return [start + cut for cut in sorted([*cuts, *found])]


def _cuts(logs: np.ndarray, returning: bool, least_effect: float, generator: np.random.Generator) -> list[int]:
    """The index of one change of `logs` (float64 [n]), or with `returning` the indices of a level and its return."""
    if len(logs) < (3 if returning else 2) * LEAST_PART:
        return []
    distances = np.abs(logs[:, None] - logs[None, :])
    first, last, energy = _best_stretch(distances, returning)
    cuts = [first, last] if returning else [first]
    effects = [abs(np.median(right) - np.median(left)) for left, right in pairwise(np.split(logs, cuts))]
    # If a level doesn't return fully, one of its two changes may be too small.
    cuts = [cut for cut, effect in zip(cuts, effects, strict=True) if effect > np.log1p(least_effect)]
    if not cuts:
        return []
    clearer, allowed = 0, LEVEL * (SHUFFLES + 1) - 1
    for _ in range(SHUFFLES):
        order = generator.permutation(len(logs))
        # The tolerance is for sums in another order.
        clearer += _best_stretch(distances[np.ix_(order, order)], returning)[2] >= energy * (1 - 1e-9)
        if clearer > allowed:
            return []
    return cuts


def _best_stretch(distances: np.ndarray, returning: bool) -> tuple[int, int, float]:
    """The stretch [first, last) with the largest energy distance from the rest, and that distance.

    It reaches the end, or with `returning` neither end. The latter finds a level and its return, which single splits
    find badly (circular binary segmentation, Olshen et al. 2004). The distance is scaled by the sizes of both sides.

    Args:
        distances: Between all pairs of n values, float64 [n, n].
    """
    n = len(distances)
    sums = np.zeros((n + 1, n + 1))
    sums[1:, 1:] = distances.cumsum(axis=0).cumsum(axis=1)
    first, last = _stretches(n, returning)
    inside = sums[last, last] - 2.0 * sums[first, last] + sums[first, first]
    between = sums[last, n] - sums[first, n] - inside
    outside = sums[n, n] - inside - 2.0 * between
    size = last - first
    rest = n - size
    energies = size * rest / n * (2.0 * between / (size * rest) - inside / size**2 - outside / rest**2)
    best = int(energies.argmax())
    return int(first[best]), int(last[best]), float(energies[best])


@lru_cache(maxsize=64)
def _stretches(n: int, returning: bool) -> tuple[np.ndarray, np.ndarray]:
    """The bounds (int64 [stretches] each) of the stretches of `n` values that have large enough parts."""
    first, last = np.triu_indices(n + 1, k=LEAST_PART)
    kept = (first >= LEAST_PART) & (last <= n - LEAST_PART if returning else last == n)
    return first[kept], last[kept]


def _criterion(residuals: np.ndarray, parameters: int) -> float:
    """The Bayesian information criterion except for a constant. Smaller is better."""
    n = len(residuals)
    return float(n * np.log(max(residuals @ residuals / n, 1e-300)) + parameters * np.log(n))
