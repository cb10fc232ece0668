"""What a pair of measurements says of a change, with the smallest one that it could have shown, and what it needs."""

from __future__ import annotations

import pytest
from isotrain.benchmarks.harness.document import Interval
from isotrain.benchmarks.regression.verdict import IMPROVED, INCONCLUSIVE, REGRESSED, SAME, Verdict, confirmed, judge

pytestmark = pytest.mark.core

GATE, PROCESSES = 0.05, 3
SEEN = "would have seen >= 5 %"
MORE = "needs about 5 processes a side, or a quieter machine"
DRIFT = f"{SEEN}; needs a quieter machine, or bench --against"


def verdict(low: float, median: float, high: float, lack: str = "", contended: bool = False) -> Verdict:
    return judge(Interval(median=median, low=low, high=high), GATE, PROCESSES, lack, contended)


@pytest.mark.parametrize(
    ("cost", "outcome", "reason"),
    [
        ((0.98, 1.0, 1.02), SAME, SEEN),
        ((1.15, 1.2, 1.25), REGRESSED, SEEN),
        ((1.09, 1.2, 1.3), REGRESSED, "would have seen >= 10 % only"),
        ((0.79, 0.8, 0.81), IMPROVED, SEEN),
        (
            (0.92, 1.0, 1.09),
            INCONCLUSIVE,
            "would have seen >= 8.7 % only; needs about 10 processes a side, or a quieter machine",
        ),
        (
            (1.01, 1.04, 1.08),
            INCONCLUSIVE,
            f"worse, perhaps within the gate; {SEEN}; needs about 6 processes a side, or a quieter machine",
        ),
        ((0.6, 1.0, 1.1), INCONCLUSIVE, "would have seen >= 67 % only; needs a quieter machine"),
        ((0.7, 1.39, 1.39), INCONCLUSIVE, f"would have seen >= 99 % only; {MORE}"),
        ((0.7, 1.397, 1.399), INCONCLUSIVE, f"would have seen >= 100 % only; {MORE}"),
        ((0.6, 1.0, 1.3), INCONCLUSIVE, "no result: the interval is wider than 2x; needs a quieter machine"),
    ],
)
def test_each_outcome_has_the_smallest_change_that_would_have_been_seen(
    cost: tuple[float, float, float], outcome: str, reason: str
) -> None:
    found = verdict(*cost)
    assert (found.outcome, found.reason) == (outcome, reason)


def test_what_a_measurement_lacks_and_what_else_ran_are_said_with_it() -> None:
    assert verdict(1.15, 1.2, 1.25, "fewer than 3 processes").reason == f"fewer than 3 processes; {SEEN}"
    assert verdict(0.92, 1.0, 1.09, contended=True).reason == "would have seen >= 8.7 % only; needs a quieter machine"


def test_less_cost_is_no_regression_however_much_less() -> None:
    """Non-inferiority: only the upper bound is held against the gate."""
    assert verdict(0.85, 0.96, 1.049).outcome == SAME
    assert verdict(0.85, 0.96, 1.051).outcome == INCONCLUSIVE


@pytest.mark.parametrize(
    ("first", "second", "outcome", "reason"),
    [
        (REGRESSED, REGRESSED, REGRESSED, SEEN),
        (REGRESSED, None, INCONCLUSIVE, f"regression, not confirmed by a second run; {SEEN}; needs --again"),
        (REGRESSED, SAME, INCONCLUSIVE, f"regression, and the second run says no regression; {DRIFT}"),
        (SAME, REGRESSED, INCONCLUSIVE, f"no regression, and the second run says regression; {DRIFT}"),
        (IMPROVED, REGRESSED, INCONCLUSIVE, f"improvement, and the second run says regression; {DRIFT}"),
        (IMPROVED, SAME, SAME, f"improvement, and the second run says no regression; {SEEN}"),
        (IMPROVED, None, SAME, f"improvement, not confirmed by a second run; {SEEN}"),
        (SAME, IMPROVED, SAME, SEEN),
        (SAME, None, SAME, SEEN),
    ],
)
def test_a_second_run_confirms_contradicts_or_is_missing(
    first: str, second: str | None, outcome: str, reason: str
) -> None:
    costs = {SAME: (0.98, 1.0, 1.02), REGRESSED: (1.15, 1.2, 1.25), IMPROVED: (0.79, 0.8, 0.81)}
    found = confirmed(verdict(*costs[first]), None if second is None else verdict(*costs[second]))
    assert (found.outcome, found.reason) == (outcome, reason)
