"""Tests over several seeds whether a device's final metric is equivalent to that of float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..harness.statistics import student_quantile
from ..outcome.parity import Equivalence

LEAST_SEEDS = 5
# Two one-sided tests at 5 % correspond to one interval of 90 % (Schuirmann 1987).
LEVEL = 0.90
EQUIVALENT: Literal["equivalent"] = "equivalent"
DIFFERENT: Literal["different"] = "different"
NO_DECISION: Literal["no decision"] = "no decision"


def equivalence(label: str, reference: Sequence[float], candidate: Sequence[float], margin: float) -> Equivalence:
    """Tests the paired differences candidate - reference of a final metric.

    The 90 % interval of their mean uses Student's t over the seeds. The verdict is "equivalent" if it lies within
    +-margin, "different" if it lies outside, else "no decision".
    """
    differences = np.asarray(candidate, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    mean = float(differences.mean())
    error = float(differences.std(ddof=1) / np.sqrt(len(differences)))
    reach = student_quantile(0.5 + LEVEL / 2, len(differences) - 1) * error
    low, high = mean - reach, mean + reach
    inside = -margin <= low and high <= margin
    outside = low > margin or high < -margin
    verdict = EQUIVALENT if inside else DIFFERENT if outside else NO_DECISION
    return Equivalence(label=label, difference=mean, low=low, high=high, verdict=verdict)
