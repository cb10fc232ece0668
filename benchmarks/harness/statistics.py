"""Medians, their intervals and tests for noise: small pure functions over numbers (rules 4, 7 and 8 of measuring).

Samples are one list per process, all of the same length. The blocks of one process share its memory layout and clocks,
so they are not independent, and an interval must cover processes as well as blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from .document import Interval

Samples = Sequence[Sequence[float]]

RESAMPLES = 10_000
LEVEL = 0.95
# Of `growth`: blocks that it needs, and the rank correlation of a leak with time.
LEAST_FOR_GROWTH, LEAST_TAU = 5, 0.9
# The least change from a process's first third of blocks to its last that is a drift, and the least distance between
# two groups of its blocks: from the slowest of one to the fastest of the other.
LEAST_DRIFT = LEAST_BETWEEN_GROUPS = 0.1
_NORMAL_QUANTILE = 1.959963984540054
_BISECTIONS = 60
# See `_calibrated`.
_BLOCK_NOISE, _LEAST_WIDENING = 0.9, 0.55


def quantile(values: Sequence[float], share: float) -> float:
    """The `share` quantile (0.5 is the median), interpolated linearly."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), share))


def median_interval(samples: Samples, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The median of all samples and its 95 % interval by hierarchical bootstrap over processes, then blocks (rule 7).

    For one process, the interval covers only the blocks within it, and says nothing about other processes. Where a
    process was unsteady, the interval reaches at least from its faster part to its slower one.
    """
    data = _table(samples)
    logs = resampled_medians(np.log(data), np.random.default_rng(seed), resamples)
    return interval(float(np.median(data)), logs, _ends(data))


def ratio_interval(numerator: Samples, denominator: Samples, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The ratio of two medians and its 95 % interval, with independent resampling (rule 7).

    Where a process of either was unsteady, the interval holds the ratios of its faster and of its slower part.
    """
    above, below = _table(numerator), _table(denominator)
    generator = np.random.default_rng(seed)
    logs = [resampled_medians(np.log(data), generator, resamples) for data in (above, below)]
    middle, base = float(np.median(above)), float(np.median(below))
    ends = [end / base for end in _ends(above)] + [middle / end for end in _ends(below)]
    return interval(middle / base, logs[0] - logs[1], ends)


def block_ratios(numerator: Samples, denominator: Samples) -> list[list[float]]:
    """The ratios of two processes that took turns in the order A B B A: a row a pair, a value for two blocks of each.

    It is the geometric mean of two blocks' ratios, so that running second was an advantage once for each side, and a
    steady drift cancels out.
    """
    ratios = _table(numerator) / _table(denominator)
    even = ratios[:, : ratios.shape[1] // 2 * 2]
    found = np.sqrt(even[:, 0::2] * even[:, 1::2]) if even.shape[1] else ratios
    rows: list[list[float]] = found.tolist()
    return rows


def paired_interval(ratios: Samples, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The median of `block_ratios` and its 95 % interval by hierarchical bootstrap over pairs, then blocks (rule 7)."""
    data = _table(ratios)
    return interval(float(np.median(data)), resampled_medians(np.log(data), np.random.default_rng(seed), resamples))


def outliers(samples: Samples) -> list[tuple[int, int]]:
    """(process, block) of the samples beyond Tukey's fences (1.5 interquartile ranges). They are never dropped."""
    data = _table(samples)
    first, third = np.quantile(data, [0.25, 0.75])
    reach = 1.5 * (third - first)
    beyond = (data < first - reach) | (data > third + reach)
    return [(int(process), int(block)) for process, block in np.argwhere(beyond)]


def is_steady(times: Sequence[float], classes: Sequence[int], largest_drift: float = 0.02, errors: float = 2.0) -> bool:
    """Whether a series of step times has no slope beyond its noise.

    Steady means a slope of the logarithms below `errors` times its standard error, or a drift below `largest_drift`
    over the whole series. Too few steps are not steady.

    Args:
        classes: Equal for steps that do the same work. Each class has its own level, so alternating batches of
            different cost are no drift.
        largest_drift: As a share.
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
    return abs(slope) <= errors * error or abs(slope) * len(steps) <= largest_drift


def drift(samples: Sequence[float]) -> float | None:
    """How much slower (above 0) or faster the last third of a process's blocks is than the first, as a share.

    Returns:
        None if it is within the noise, or there are fewer than six blocks.
    """
    if len(samples) < 6:
        return None
    first, last = _thirds(samples)
    change = float(np.median(last) / np.median(first) - 1.0)
    apart = last.min() > first.max() or last.max() < first.min()
    sloping = not is_steady(samples, [0] * len(samples))
    return change if apart and sloping and abs(change) > LEAST_DRIFT else None


def scatter(samples: Sequence[float]) -> float:
    """The spread of samples as a share of their median: the standard deviation that a normal value has of it.

    It is that of the middle half, so that a few outliers count little. 0 for fewer than five samples.
    """
    if len(samples) < 5:
        return 0.0
    first, middle, third = np.quantile(np.asarray(samples, dtype=np.float64), [0.25, 0.5, 0.75])
    return float((third - first) / middle / (2 * 0.674490))


def common_drift(samples: Samples) -> float | None:
    """`drift` of all processes together, each taken relative to its own median: against the noise of all blocks.

    None also where there are fewer than six blocks a process.
    """
    data = _table(samples)
    if data.shape[1] < 6:
        return None
    relative = data / np.median(data, axis=1, keepdims=True)
    first, last = (np.median(part) for part in _thirds(relative.T))
    in_order = relative.T.ravel()
    change = float(last / first - 1.0)
    # Asked where two processes have a slope beyond twice the error already, by chance or not.
    sloping = not is_steady(in_order.tolist(), [0] * len(in_order), errors=4.0)
    return change if sloping and abs(change) > LEAST_DRIFT else None


def _thirds(blocks: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first third of blocks and the last."""
    data = np.asarray(blocks, dtype=np.float64)
    third = len(data) // 3
    return data[:third], data[-third:]


def growth(held: Sequence[int], steps: int) -> float | None:
    """Bytes a step by which the memory in use grows from block to block.

    Args:
        held: Bytes in use after each block of `steps` steps. The first third may still fill caches and doesn't count.
        steps: Steps of a block.

    Returns:
        The median of the slopes between all pairs (Theil and Sen); None where nearly all pairs don't rise (Kendall's
        tau below 0.9), or what is gained is less than 8 KiB a step or 256 KiB in all.
    """
    data = np.asarray(held[len(held) // 3 :], dtype=np.float64)
    if len(data) < LEAST_FOR_GROWTH:
        return None
    first, second = np.triu_indices(len(data), 1)
    rises = data[second] - data[first]
    slope = float(np.median(rises / (second - first)))
    steady = float(np.sign(rises).mean()) >= LEAST_TAU
    gained = slope * (len(data) - 1)
    return slope / steps if steady and slope >= 2**13 * steps and gained >= 2**18 else None


def two_modes(samples: Samples) -> tuple[float, float, int] | None:
    """Tests whether the samples fall into two groups, in which case their median says little.

    There are two groups if the widest gap between sorted neighbours is wider than 5 % of the median and three times the
    interquartile range of either side, and each side has at least a fifth of the samples.

    Returns:
        The medians of the faster and the slower group, and the size of the slower one; None for one group.
    """
    data = np.sort(_table(samples).ravel())
    least = max(2, math.ceil(len(data) / 5))
    if len(data) < 2 * least:
        return None
    gaps = np.diff(data)[least - 1 : len(data) - least]
    cut = least + int(np.argmax(gaps))
    fast, slow = data[:cut], data[cut:]
    spread = max(float(np.subtract(*np.quantile(part, [0.75, 0.25]))) for part in (fast, slow))
    gap = float(slow[0] - fast[-1])
    if gap <= max(3.0 * spread, 0.05 * float(np.median(data))):
        return None
    return float(np.median(fast)), float(np.median(slow)), len(slow)


def alternation(samples: Sequence[float]) -> tuple[float, float, int] | None:
    """`two_modes` of one process's blocks; None, too, where the groups are less than a tenth apart, or it drifted."""
    groups = two_modes([samples])
    if groups is None or drift(samples) is not None:
        return None
    ordered, slower = sorted(samples), groups[2]
    return groups if ordered[-slower] > (1.0 + LEAST_BETWEEN_GROUPS) * ordered[-slower - 1] else None


def _ends(data: np.ndarray) -> list[float]:
    """The medians of the faster and the slower part of each unsteady process of `data` (float64 [processes, blocks]).

    Those are its first and last third where it drifted, else its two groups.
    """
    ends: list[float] = []
    for blocks in data:
        groups = alternation(blocks)
        if drift(blocks) is not None:
            ends += [float(np.median(part)) for part in _thirds(blocks)]
        elif groups is not None:
            ends += groups[:2]
    return ends


def _table(samples: Samples) -> np.ndarray:
    """float64 [processes, blocks]. Raises ValueError for no samples, unequal lengths, or times that aren't positive."""
    lengths = {len(row) for row in samples}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"samples must be the same number of blocks, at least one, of each process, not {lengths}")
    data = np.asarray(samples, dtype=np.float64)
    if not (np.isfinite(data) & (data > 0.0)).all():
        raise ValueError("samples must be positive, finite times")
    return data


def interval(median: float, resampled_logs: np.ndarray, ends: Sequence[float] = ()) -> Interval:
    """The interval of a figure from the logarithms of its resampled values, float64 [resamples].

    It also holds `ends`.
    """
    low, high = np.exp(bounds(resampled_logs))
    return Interval(median=median, low=min(float(low), median, *ends), high=max(float(high), median, *ends))


def bounds(resampled: np.ndarray) -> np.ndarray:
    """The ends (float64 [2, ...]) of the 95 % interval of resampled values [..., resamples]."""
    return np.quantile(resampled, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0], axis=-1)


def resampled_medians(data: np.ndarray, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """Medians of resampled tables: processes are drawn with replacement, then their blocks.

    Args:
        data: Log times, float64 [..., processes, blocks]. Several tables are resampled alike.

    Returns:
        float64 [..., resamples].
    """
    processes, blocks = data.shape[-2:]
    spread = _calibrated(data)
    chosen = generator.integers(processes, size=(resamples, processes, 1))
    drawn = generator.integers(blocks, size=(resamples, processes, blocks))
    return np.median(spread[..., chosen, drawn].reshape(*data.shape[:-2], resamples, -1), axis=-1)


def _calibrated(data: np.ndarray) -> np.ndarray:
    """Adjusts the spread of log times [..., processes, blocks], so that the bootstrap reaches its nominal coverage.

    If processes differ more than blocks do, a plain bootstrap of three processes covers only 77 %, since the spread of
    three numbers underestimates that of all processes. The normal-theory remedy (Hesterberg, "What Teachers Should Know
    About the Bootstrap", 2015, section 4) widens by t / z * sqrt(n / (n - 1)). The noise of the blocks explains a part
    of the spread between the processes' medians. It is resampled with the blocks and must not be counted twice. Three
    processes don't show well how large that part is, so some of the widening always stays. Blocks are moved a little
    towards their process's median, since a bootstrap overstates the variance of a median (by 1.22 for 27 normal
    values). Logarithms keep the bounds of times positive. The two constants come from simulations; the tests measure
    the coverage that docs/benchmarks.md states.
    """
    processes, blocks = data.shape[-2:]
    medians = np.median(data, axis=-1, keepdims=True)
    centre = medians.mean(axis=-2, keepdims=True)
    deviations, noise = medians - centre, _BLOCK_NOISE * (data - medians)
    if processes < 2:
        return medians + noise
    between = (deviations**2).sum(axis=-2, keepdims=True) / (processes - 1)
    within = ((data - medians) ** 2).sum(axis=(-2, -1), keepdims=True) / (processes * max(1, blocks - 1))
    # The variance of a median of n normal values is pi / 2 times that of their mean.
    explained = within * math.pi / 2.0 / blocks / np.where(between > 0.0, between, np.inf)
    share = np.minimum(1.0, np.maximum(0.0, 1.0 - explained) + _LEAST_WIDENING)
    widened = share * student_widening(processes) ** 2 - _BLOCK_NOISE**2 * explained * processes / (processes - 1)
    return centre + np.sqrt(np.maximum(0.0, widened)) * deviations + noise


def student_widening(processes: int) -> float:
    """The factor that widens the spread between a few processes; 1 for a single one."""
    if processes < 2:
        return 1.0
    return student_quantile(0.5 + LEVEL / 2, processes - 1) / _NORMAL_QUANTILE * math.sqrt(processes / (processes - 1))


@cache
def student_quantile(share: float, freedom: int) -> float:
    """The `share` quantile, at least the median, of Student's t with `freedom` degrees of freedom."""
    # P(|T| < tan(angle) * sqrt(freedom)) is a finite sum, and grows with the angle.
    low, high = 0.0, math.pi / 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _student_within(middle, freedom) < 2 * share - 1:
            low = middle
        else:
            high = middle
    return math.tan(low) * math.sqrt(freedom)


def _student_within(angle: float, freedom: int) -> float:
    """Abramowitz and Stegun, "Handbook of Mathematical Functions" (1964), 26.7.3 and 26.7.4."""
    odd = freedom % 2
    term, total = math.cos(angle) ** odd, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total


def relative_distance(expected: Sequence[float], found: Sequence[float]) -> float:
    """L2 norm of the difference over that of `expected`; infinite where either isn't finite."""
    norm, difference = math.hypot(*expected), math.dist(expected, found)
    return difference / norm if norm and math.isfinite(norm + difference) else math.inf
