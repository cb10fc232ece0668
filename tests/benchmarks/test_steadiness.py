"""Drift and two groups of blocks: invalid where they repeat, else a warning with a wider interval."""

from __future__ import annotations

import numpy as np
import pytest
from isotrain.benchmarks.harness import statistics as st
from isotrain.benchmarks.outcome.steadiness import steadiness

BLOCKS = 9
RISING, FALLING = np.linspace(1.0, 1.5, BLOCKS), np.linspace(1.5, 1.0, BLOCKS)
TWO_GROUPS = np.where(np.arange(BLOCKS) % 3 == 1, 1.5, 1.0)
STEADY = np.ones(BLOCKS)
SHAPES = {"slower than the first": RISING, "faster than the first": FALLING, "slower than the others": TWO_GROUPS}


def drawn(seed: int, *shapes: np.ndarray, noise: float = 0.01) -> list[list[float]]:
    """A process of each shape, with a level of its own and noise of its blocks."""
    generator = np.random.default_rng(seed)
    return [
        (shape * np.exp(0.02 * generator.standard_normal() + noise * generator.standard_normal(BLOCKS))).tolist()
        for shape in shapes
    ]


@pytest.mark.parametrize("words", SHAPES)
def test_what_a_second_process_shows_makes_a_target_invalid(words: str) -> None:
    shape = SHAPES[words]
    for seed in range(20):
        for processes in ((shape, shape), (shape, shape, shape), (shape, STEADY, shape)):
            found = steadiness(drawn(seed, *processes), [False] * len(processes))
            assert len(found.reasons) == 1
            assert words in found.reasons[0]
            assert found.warnings == []


@pytest.mark.parametrize("words", SHAPES)
def test_what_one_process_shows_is_a_warning_and_widens_the_interval(words: str) -> None:
    shape = SHAPES[words]
    for seed in range(20):
        for processes in ((shape,), (STEADY, shape, STEADY)):
            samples = drawn(seed, *processes)
            found = steadiness(samples, [False] * len(processes))
            assert found.reasons == []
            assert len(found.warnings) == 1
            assert words in found.warnings[0]
            interval = st.median_interval(samples, seed)
            assert interval.high / interval.low > 1.25
            ratio = st.ratio_interval(samples, drawn(seed + 1, STEADY, STEADY, STEADY), seed)
            inverse = st.ratio_interval(drawn(seed + 1, STEADY, STEADY, STEADY), samples, seed)
            assert min(ratio.high / ratio.low, inverse.high / inverse.low) > 1.25


def test_opposite_drifts_confirm_nothing() -> None:
    for seed in range(20):
        assert steadiness(drawn(seed, RISING, FALLING, STEADY), [False] * 3).reasons == []
        assert steadiness(drawn(seed, RISING, FALLING), [False] * 2).reasons == []


def test_contended_processes_and_few_blocks_confirm_nothing() -> None:
    samples = drawn(1, RISING, RISING, STEADY)
    assert steadiness(samples, [False, True, False]).reasons == []
    assert steadiness(samples, [True, True, True]).reasons == []
    short = [process[:8] for process in samples]
    assert steadiness(short, [False] * 3).reasons == []
    assert len(steadiness(short, [False] * 3).warnings) == 1


def test_two_of_many_processes_confirm_nothing_against_the_noise_of_all() -> None:
    for shape in SHAPES.values():
        samples = drawn(3, shape, shape, *[STEADY] * 18)
        assert steadiness(samples, [False] * 20).reasons == []


def test_runs_of_unchanged_processes_that_drift_at_random_end_valid() -> None:
    """20 runs of 6 targets of 3 processes: one in twenty drifts or has two speeds, by 10 % to 60 %, each in its way."""
    generator = np.random.default_rng(11)
    flagged = 0
    for _ in range(20 * 6):
        shapes = []
        for _ in range(3):
            shape = list(SHAPES.values())[generator.integers(3)] if generator.random() < 0.05 else STEADY
            shapes.append(1.0 + (shape - 1.0) * generator.uniform(0.2, 1.2))
        found = steadiness(drawn(int(generator.integers(2**32)), *shapes, noise=0.03), [False] * 3)
        assert found.reasons == []
        flagged += len(found.warnings)
    assert flagged >= 8, "there was something to excuse"


@pytest.mark.parametrize("spread", [0.01, 0.05, 0.1, 0.2])
def test_noise_of_blocks_is_neither_drift_nor_two_speeds(spread: float) -> None:
    found = [steadiness(drawn(seed, STEADY, STEADY, STEADY, noise=spread), [False] * 3) for seed in range(500)]
    assert sum(bool(one.reasons) for one in found) == 0


def test_noise_of_one_process_is_not_two_speeds() -> None:
    generator = np.random.default_rng(5)

    def found(spread: float) -> int:
        drawn = (np.exp(spread * generator.standard_normal(9)) * 1e6 for _ in range(500))
        return sum(st.alternation(blocks.tolist()) is not None for blocks in drawn)

    assert found(0.05) <= 5
    assert found(0.1) <= 20
