"""How often each way to compare two versions sees a slowdown, and how often it sees one that isn't there.

``PYTHONPATH=tests python -m support.gate_simulation`` prints the table of docs/benchmarks.md. Log times are normal:
blocks, processes, and the state of the machine, which differs from run to run and drifts during one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from isotrain.benchmarks.harness.statistics import block_ratios, interval, resampled_medians
from isotrain.benchmarks.regression.verdict import Verdict, confirmed, judge

GATE = 0.05
PROCESSES, SEQUENTIAL_BLOCKS = 3, 9
PAIRS, PAIRED_BLOCKS = 6, 20


@dataclass(frozen=True)
class Noise:
    """Spreads of log times. between: of one run to the next. within: of one process's first third to its last."""

    blocks: float
    processes: float
    between: float
    within: float = 0.0


QUIET = Noise(0.01, 0.003, 0.0)
DRIFTING = Noise(0.01, 0.003, 0.05, 0.02)
BUSY = Noise(0.08, 0.02, 0.05, 0.05)

Compare = Callable[[np.random.Generator, Noise, float, int], Verdict]


def _run(generator: np.random.Generator, noise: Noise, slowdown: float) -> np.ndarray:
    """Log times of one whole run, float64 [processes, blocks]."""
    shape = (PROCESSES, SEQUENTIAL_BLOCKS)
    state = noise.between * generator.standard_normal() + noise.within * _course(generator, shape)
    processes = noise.processes * generator.standard_normal((PROCESSES, 1))
    return np.log1p(slowdown) + state + processes + noise.blocks * generator.standard_normal(shape)


def _course(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """How the machine's state moves over the blocks of each process: steadily, up or down."""
    return generator.standard_normal((shape[0], 1)) * np.linspace(-0.75, 0.75, shape[1])


def sequential(generator: np.random.Generator, noise: Noise, slowdown: float, resamples: int) -> Verdict:
    """`isotrain compare A B --again B2`: one whole run after the other."""
    before = _run(generator, noise, 0.0)

    def pair() -> Verdict:
        after = _run(generator, noise, slowdown)
        logs = [resampled_medians(data, generator, resamples) for data in (after, before)]
        median = float(np.exp(np.median(after) - np.median(before)))
        return judge(interval(median, logs[0] - logs[1]), GATE, PROCESSES)

    return confirmed(pair(), pair())


def interleaved(generator: np.random.Generator, noise: Noise, slowdown: float, resamples: int) -> Verdict:
    """`isotrain bench --against`: pairs of processes that take turns, so that both meet the same state."""
    shape = (PAIRS, PAIRED_BLOCKS)
    state = noise.between * generator.standard_normal((PAIRS, 1)) + noise.within * _course(generator, shape)
    times = []
    for slower in (slowdown, 0.0):
        processes = noise.processes * generator.standard_normal((PAIRS, 1))
        drawn = noise.blocks * generator.standard_normal(shape)
        times.append(np.exp(np.log1p(slower) + state + processes + drawn).tolist())
    ratios = np.log(block_ratios(*times))
    logs = resampled_medians(ratios, generator, resamples)
    return judge(interval(float(np.exp(np.median(ratios))), logs), GATE, PAIRS)


WAYS: dict[str, Compare] = {"sequential": sequential, "interleaved": interleaved}


def outcomes(compare: Compare, noise: Noise, slowdown: float, runs: int, resamples: int) -> Counter[str]:
    """How often each outcome came of `runs` simulated comparisons."""
    generator = np.random.default_rng(11)
    return Counter(compare(generator, noise, slowdown, resamples).outcome for _ in range(runs))


def main(runs: int = 1000, resamples: int = 1000) -> None:
    for name, noise in (("quiet", QUIET), ("5 % between runs", DRIFTING), ("busy, too", BUSY)):
        for way, compare in WAYS.items():
            for slowdown in (0.0, 0.05, 0.10, 0.20):
                found = outcomes(compare, noise, slowdown, runs, resamples)
                shares = ", ".join(f"{outcome} {count / runs:.1%}" for outcome, count in sorted(found.items()))
                print(f"{name:18} {way:12} {slowdown:4.0%}: {shares}")


if __name__ == "__main__":
    main()
