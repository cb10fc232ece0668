"""What the two ways to compare versions see in simulated runs whose machine changes its speed between them.

docs/benchmarks.md shows the figures; ``PYTHONPATH=tests python -m support.gate_simulation`` prints them all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from isotrain.benchmarks.regression.verdict import REGRESSED, SAME
from support.gate_simulation import BUSY, DRIFTING, QUIET, Noise, interleaved, outcomes, sequential

RUNS, RESAMPLES = 200, 200

# Each simulation draws the same numbers again.
simulated = functools.cache(outcomes)


def shares(noise: Noise, slowdown: float, *, paired: bool, outcome: str = REGRESSED) -> float:
    found = simulated(interleaved if paired else sequential, noise, slowdown, RUNS, RESAMPLES)
    return found[outcome] / RUNS


def test_pairs_see_no_regression_that_is_not_there(show: Callable[[str], None]) -> None:
    for name, noise in (("quiet", QUIET), ("drifting", DRIFTING), ("busy, too", BUSY)):
        alarms = shares(noise, 0.0, paired=True)
        show(f"{name}: {alarms:.1%} false alarms by pairs, {shares(noise, 0.0, paired=False):.1%} by whole runs")
        assert alarms <= 0.01
    assert shares(DRIFTING, 0.0, paired=True, outcome=SAME) >= 0.95


def test_pairs_see_a_regression_where_the_machine_drifts() -> None:
    for noise in (QUIET, DRIFTING):
        assert shares(noise, 0.1, paired=True) >= 0.9
        assert shares(noise, 0.2, paired=True) == 1.0


def test_whole_runs_one_after_the_other_take_a_drift_between_them_for_the_code() -> None:
    """Two runs of the new version are held against the same run of the old one: its drift is in both."""
    assert shares(DRIFTING, 0.0, paired=False) > 0.03
    assert shares(QUIET, 0.0, paired=False) <= 0.01
