"""What a pair of measurements says of a change (rule 8): no regression, a regression, or nothing that it could show.

"No regression" is a test of non-inferiority, not the absence of a finding: the whole 95 % interval of the cost ratio
lies below the gate. It is one of the two one-sided tests of Schuirmann, "A comparison of the two one-sided tests
procedure and the power approach", J. Pharmacokinet. Biopharm. 15(6), 1987, at 2.5 %: less cost needs no second bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...kernels.names import check_name
from ...kernels.words import count
from ..harness.document import Interval

IMPROVED, SAME, REGRESSED, INCONCLUSIVE = "improvement", "no regression", "regression", "inconclusive"
# Of a target that can't be compared, and of one that only one side has.
REFUSED, MISSING = "refused", "missing"
BAD = (REGRESSED, REFUSED, MISSING)
# Exit codes: nothing regressed; a regression, or a target that is gone; results that can't be compared; not decided.
SOUND, FAILED, UNUSABLE, UNDECIDED = 0, 1, 2, 3
FAIL, WARN, PASS = "fail", "warn", "pass"
# An interval this many times as high as low says nothing that is worth a figure.
WIDEST = 2.0
# More processes than this are no advice.
MOST_PROCESSES = 30


@dataclass(frozen=True)
class Verdict:
    """One outcome and why.

    seen: what this pair says by itself, before a second one confirms it. detectable: the smallest rise, as a share of
    the cost, that the pair could have shown; None where it has no interval.
    """

    outcome: str
    reason: str = ""
    seen: str = ""
    detectable: float | None = None


def judge(cost: Interval, gate: float, processes: int, lack: str = "", contended: bool = False) -> Verdict:
    """What one pair says.

    Args:
        cost: After over before of what should be low: 1.1 is a tenth more time, memory or energy.
        gate: The smallest rise that counts, as a share.
        processes: Processes of each side, for the advice.
        lack: What a measurement needs and this one has not, in words.
        contended: Whether other work had the CPUs.

    Returns:
        The outcome, with the smallest rise that would have been seen, and what an inconclusive one needs.
    """
    detectable = max(gate, cost.median / cost.low - 1.0)
    need = _need(cost, gate, processes, contended)
    if cost.high > WIDEST * cost.low:
        wide = f"no result: the interval is wider than {WIDEST:g}x"
        return Verdict(INCONCLUSIVE, f"{wide}; {lack or need}", INCONCLUSIVE)
    seen = f"would have seen >= {_percent(detectable)}{' only' if detectable > gate else ''}"
    if lack:
        return Verdict(INCONCLUSIVE, f"{lack}; {seen}", INCONCLUSIVE, detectable)
    # Symmetric: twice as much and half as much are effects of one size.
    if cost.low > 1.0 and cost.median > 1.0 + gate:
        return Verdict(REGRESSED, seen, REGRESSED, detectable)
    if cost.high < 1.0 and 1.0 / cost.median > 1.0 + gate:
        return Verdict(IMPROVED, seen, IMPROVED, detectable)
    if cost.high <= 1.0 + gate:
        return Verdict(SAME, seen, SAME, detectable)
    worse = "worse, perhaps within the gate; " if cost.low > 1.0 else ""
    return Verdict(INCONCLUSIVE, f"{worse}{seen}; {need}", INCONCLUSIVE, detectable)


def confirmed(first: Verdict, second: Verdict | None) -> Verdict:
    """What a pair of runs and a second pair agree on. second: None without one, which confirms no change.

    Runs that are measured one after the other differ by more than their intervals say: the machine's state drifts
    between them.
    """
    is_open = first.seen in (REGRESSED, IMPROVED) or (
        first.seen == SAME and second is not None and second.seen == REGRESSED
    )
    if not is_open or (second is not None and second.seen == first.seen):
        return first
    why, need = "not confirmed by a second run", "needs --again"
    if second is not None:
        why, need = f"and the second run says {second.seen}", "needs a quieter machine, or bench --against"
    reason = f"{first.seen}, {why}; {first.reason}"
    # Less cost than before is no regression, however often it was seen.
    if first.seen == IMPROVED and (second is None or second.seen != REGRESSED):
        return replace(first, outcome=SAME, reason=reason)
    return replace(first, outcome=INCONCLUSIVE, reason=f"{reason}; {need}")


def exit_code(outcomes: Iterable[str], on_undecided: str = FAIL, allow_missing: bool = False) -> int:
    """1 for a regression or a target that is gone, else 2 for a refused one, else 3 for one that is not decided."""
    found = set(outcomes)
    if REGRESSED in found or (MISSING in found and not allow_missing):
        return FAILED
    if REFUSED in found:
        return UNUSABLE
    return UNDECIDED if INCONCLUSIVE in found and on_undecided == FAIL else SOUND


def check_undecided(value: str) -> str:
    """`value` if it is one of fail, warn and pass. Raises UserError otherwise."""
    check_name("--on-undecided", value, (FAIL, WARN, PASS))
    return value


def _need(cost: Interval, gate: float, processes: int, contended: bool) -> str:
    """What would make the pair conclusive: widths fall with the square root of the number of processes."""
    quieter = "a quieter machine"
    width = math.log(cost.high / cost.low) / 2.0
    room = max(abs(math.log1p(gate) - math.log(cost.median)), math.log1p(gate) / 2.0, 1e-9)
    wanted = math.ceil(processes * (width / room) ** 2)
    if contended or wanted > MOST_PROCESSES:
        return f"needs {quieter}"
    return f"needs about {count(max(wanted, processes + 1), 'process')} a side, or {quieter}"


def _percent(share: float) -> str:
    percent = 100.0 * share
    return f"{percent:.0f} %" if percent >= 10.0 else f"{percent:.2g} %"
