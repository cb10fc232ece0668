"""Medians, intervals and noise, on numbers whose distribution is known."""

from __future__ import annotations

import numpy as np
import pytest
from isotrain.benchmarks.harness import statistics as st
from isotrain.benchmarks.harness.document import Interval
from scipy import stats

pytestmark = pytest.mark.core


def _coverage(processes: int, blocks: int, between: float, runs: int = 400) -> float:
    """How often the 95 % interval holds the true median, 1.0, of log-normal times with a 5 % spread of blocks."""
    generator = np.random.default_rng(7)
    hits = 0
    for run in range(runs):
        noise = generator.standard_normal((processes, blocks)) + between * generator.standard_normal((processes, 1))
        interval = st.median_interval(np.exp(0.05 * noise).tolist(), seed=run, resamples=600)
        hits += interval.low <= 1.0 <= interval.high
    return hits / runs


@pytest.mark.parametrize(
    ("processes", "between", "low", "high"),
    [(3, 0.0, 0.93, 0.99), (3, 0.25, 0.92, 0.98), (3, 2.0, 0.88, 0.97), (5, 0.5, 0.92, 0.985), (10, 1.0, 0.92, 0.98)],
)
def test_the_interval_covers_as_it_says(processes: int, between: float, low: float, high: float) -> None:
    assert low <= _coverage(processes, 9, between) <= high


def test_blocks_alone_miss_what_differs_between_processes() -> None:
    """Why rule 7 asks for processes: an interval from one process covers far less than 95 %."""
    assert _coverage(1, 27, between=1.0) < 0.6


def test_the_interval_is_the_same_for_the_same_seed_and_holds_the_median() -> None:
    samples = [[1.0, 2.0, 9.0], [3.0, 4.0, 5.0]]
    assert st.median_interval(samples, 3) == st.median_interval(samples, 3)
    interval = st.median_interval(samples, 3)
    assert interval.median == pytest.approx(3.5)
    assert interval.low <= 3.5 <= interval.high


def test_equal_samples_have_a_point_for_an_interval() -> None:
    interval = st.median_interval([[2.0] * 3] * 3, 0)
    assert (interval.median, interval.low, interval.high) == pytest.approx((2.0, 2.0, 2.0))


def test_a_rate_swaps_the_bounds_of_its_time() -> None:
    assert Interval(median=2.0, low=1.0, high=4.0).rate(8.0) == Interval(median=4.0, low=2.0, high=8.0)


def test_a_known_ratio_is_found() -> None:
    generator = np.random.default_rng(1)
    base = generator.normal(1.0, 0.02, (3, 9))
    ratio = st.ratio_interval((2.0 * base).tolist(), generator.normal(1.0, 0.02, (3, 9)).tolist(), seed=1)
    assert ratio.low <= 2.0 <= ratio.high
    assert ratio.high - ratio.low < 0.2


def test_bounds_of_a_time_stay_positive_however_far_processes_are_apart() -> None:
    interval = st.median_interval([[0.1, 0.11], [0.1, 0.09], [5.0, 5.5]], 0)
    assert 0 < interval.low <= interval.median <= interval.high


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "same number of blocks"),
        ([[]], "same number of blocks"),
        ([[1.0], [1.0, 2.0]], "same number of blocks"),
        ([[1.0, 0.0]], "positive, finite"),
        ([[1.0, float("nan")]], "positive, finite"),
    ],
)
def test_what_are_no_samples_is_refused(samples: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        st.median_interval(samples, 0)


def test_outliers_are_labelled_by_process_and_block() -> None:
    assert st.outliers([[1.0, 1.01, 0.99, 1.0], [1.0, 1.02, 5.0, 0.98]]) == [(1, 2)]
    assert st.outliers([[1.0, 1.1, 1.2, 1.3]]) == []


def test_a_slope_is_not_steady_and_noise_is() -> None:
    generator = np.random.default_rng(2)
    noise = np.exp(0.03 * generator.standard_normal(12))
    falling = noise * np.linspace(2.0, 1.0, 12)
    assert st.is_steady(noise.tolist(), [0] * 12)
    assert not st.is_steady(falling.tolist(), [0] * 12)


def test_batches_of_different_cost_in_turn_are_no_slope() -> None:
    times = [1.0, 2.0, 4.0, 8.0] * 3
    assert st.is_steady(times, [0, 1, 2, 3] * 3)
    slowing = [time * 1.1**step for step, time in enumerate(times)]
    assert not st.is_steady(slowing, [0, 1, 2, 3] * 3)


def test_noise_passes_as_steady_at_about_its_rate() -> None:
    generator = np.random.default_rng(3)
    quiet = [st.is_steady(np.exp(0.1 * generator.standard_normal(12)).tolist(), [0] * 12) for _ in range(300)]
    assert sum(quiet) / 300 > 0.88


def test_too_few_steps_are_not_steady() -> None:
    assert not st.is_steady([1.0, 1.0], [0, 0])
    assert not st.is_steady([1.0, 1.0, 1.0], [0, 1, 2])


def test_drift_is_found_only_beyond_the_noise() -> None:
    assert st.drift([1.0, 1.01, 1.02, 1.2, 1.4, 1.5, 1.5, 1.6, 1.55]) == pytest.approx(0.535, abs=0.02)
    assert st.drift([1.0, 1.3, 0.9, 1.2, 1.0, 1.1]) is None
    assert st.drift([1.0, 2.0, 3.0]) is None


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 199])
@pytest.mark.parametrize("share", [0.5, 0.6, 0.95, 0.975, 0.999])
def test_student_quantiles_are_scipys(share: float, freedom: int) -> None:
    assert st.student_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-11, abs=1e-11)


def test_two_groups_are_told_and_one_is_not() -> None:
    generator = np.random.default_rng(4)
    noise = np.exp(0.01 * generator.standard_normal((3, 9)))
    blocks = noise.copy()
    blocks[:, ::3] *= 1.3
    processes = noise * np.array([[1.0], [1.0], [1.2]])
    for samples in (blocks, processes):
        found = st.two_modes(samples.tolist())
        assert found is not None
        assert found[2] == 9
    assert st.two_modes(noise.tolist()) is None
    outlier = noise.copy()
    outlier[0, 0] = 3.0
    assert st.two_modes(outlier.tolist()) is None, "one outlier is no group"
    drawn = [st.two_modes(np.exp(0.05 * generator.standard_normal((3, 9))).tolist()) for _ in range(300)]
    assert sum(found is not None for found in drawn) <= 3
