"""Whether a device ends where float64 ends, over several seeds: equivalence shown, not a difference not found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..outcome.parity import Equivalence

LEAST_SEEDS = 5
# Two one-sided tests at 5 % are one interval of 90 % (Schuirmann 1987).
LEVEL = 0.90
EQUIVALENT: Literal["equivalent"] = "equivalent"
DIFFERENT: Literal["different"] = "different"
NO_DECISION: Literal["no decision"] = "no decision"


def equivalence(label: str, reference: Sequence[float], candidate: Sequence[float], margin: float) -> Equivalence:
    """The mean paired difference candidate - reference of a final metric with its 90 % interval, and the verdict.

    "equivalent": the interval lies within +-margin; "different": outside it; else "no decision". Student's t over the
    seeds, which both sides share.
    """
    from scipy import stats

    differences = np.asarray(candidate, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    mean = float(differences.mean())
    error = float(differences.std(ddof=1) / np.sqrt(len(differences)))
    reach = float(stats.t.ppf(0.5 + LEVEL / 2, len(differences) - 1)) * error
    low, high = mean - reach, mean + reach
    inside = -margin <= low and high <= margin
    outside = low > margin or high < -margin
    verdict = EQUIVALENT if inside else DIFFERENT if outside else NO_DECISION
    return Equivalence(label=label, difference=mean, low=low, high=high, verdict=verdict)
