"""Whether the blocks of a target's processes were steady: found in each of them, judged over all (rule 6).

One process may have met a bad moment of the machine, which says nothing about the target. What a second process shows,
too, is the target's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from ..harness.statistics import Samples, alternation, common_drift, drift, two_modes

# Blocks of a process from which on a drift beyond the noise, or two groups, are no chance any more.
LEAST_BLOCKS = 9
# Processes that must show the same.
LEAST_PROCESSES = 2


@dataclass
class Steadiness:
    """What makes a target invalid, and what only widens its interval (`statistics.median_interval`)."""

    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def steadiness(samples: Samples, contended: Sequence[bool]) -> Steadiness:
    """Whether a drift, or two groups of blocks, is the target's own.

    It is where at least two processes show the same, and so do the blocks of all processes together. Processes that
    other work contended don't count.

    Args:
        samples: Times, one list of blocks a process.
        contended: For each process, whether other work had the CPUs.
    """
    drifts = {place: change for place, blocks in enumerate(samples) if (change := drift(blocks)) is not None}
    groups = {place: found for place, blocks in enumerate(samples) if (found := alternation(blocks)) is not None}
    calm = [place for place, busy in enumerate(contended) if not busy]
    together = common_drift([samples[place] for place in calm]) if calm else None
    verdict = Steadiness()

    def tell(shares: Mapping[int, float], confirmed: bool, text: str, meaning: str) -> None:
        if not shares:
            return
        found = f"{text.format(_range([f'{share:.0%}' for share in shares.values()]))}{_where(shares, samples)}"
        showing = [place for place in calm if place in shares]
        if confirmed and len(showing) >= LEAST_PROCESSES and len(samples[0]) >= LEAST_BLOCKS:
            verdict.reasons.append(f"{found}: {meaning}")
        else:
            verdict.warnings.append(f"{found}; the interval spans both")

    for sign, word in ((1, "slower"), (-1, "faster")):
        tell(
            {place: sign * change for place, change in drifts.items() if sign * change > 0},
            together is not None and sign * together > 0,
            f"the last third of the blocks ran {{}} {word} than the first",
            "the device throttled, or never was in a steady state",
        )
    counts = _range([str(slower) for *_, slower in groups.values()])
    tell(
        {place: slow / fast - 1.0 for place, (fast, slow, _) in groups.items()},
        _in_two_groups([samples[place] for place in calm]),
        f"{counts} of {len(samples[0])} blocks ran {{}} slower than the others",
        "it has no speed, but two",
    )
    return verdict


def _in_two_groups(samples: Samples) -> bool:
    """Whether the blocks of all processes fall into two groups, each taken relative to its process's faster ones."""
    relative = []
    for blocks in samples:
        groups = alternation(blocks)
        level = groups[0] if groups is not None else median(blocks)
        relative.append([block / level for block in blocks])
    return bool(relative) and two_modes(relative) is not None


def _range(texts: Sequence[str]) -> str:
    """The least and the largest of numbers that are written alike."""
    ordered = sorted(texts, key=lambda text: (len(text), text))
    return " to ".join(dict.fromkeys([*ordered[:1], *ordered[-1:]]))


def _where(places: Mapping[int, float], samples: Samples) -> str:
    return f" (process {', '.join(str(place + 1) for place in places)})" if len(samples) > 1 else ""
