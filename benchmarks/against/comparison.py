"""A result of `isotrain bench --against` as a comparison, which tables and CI services are made from."""

from __future__ import annotations

from ...albert_core.terminal.text import duration
from ..outcome.against import Against, PairedTarget
from ..regression.compare import Compared, Comparison, differences_of, growing, subject_of, warned
from ..regression.metrics import SPEED
from ..regression.verdict import WIDEST, Verdict


def comparison(result: Against) -> Comparison:
    before, after = result.before.result, result.after.result
    measured = zip(result.targets, before.targets, after.targets, strict=True)
    return Comparison(
        before=result.before.label,
        after=result.after.label,
        subject=subject_of(after),
        # Both met the same state of the machine, so that no second run is needed.
        confirmed=True,
        targets=tuple(warned(_compared(target, result.gate), old, new) for target, old, new in measured),
        differences=differences_of(before, after),
        warnings=(*result.notes, *growing(before, after)),
        on_undecided=result.on_undecided,
        allow_missing=False,
        paired=True,
    )


def _compared(target: PairedTarget, gate: float) -> Compared:
    if target.time is None:
        return Compared(target.label, SPEED, Verdict(target.verdict, target.reason))
    told = [target.reason, f"took {duration(target.seconds)}"]
    cpu = target.cpu_time and target.cpu_time.rate(1.0)
    # An interval that is too wide is worth no figure, nor is CPU time beside a wall time that has none.
    if cpu is not None and target.detectable is not None and cpu.high <= WIDEST * cpu.low:
        told.insert(1, f"by CPU time {cpu.median:.3f}x ({cpu.low:.3f} to {cpu.high:.3f})")
    verdict = Verdict(target.verdict, "; ".join(filter(None, told)), target.verdict, target.detectable)
    return Compared(target.label, SPEED, verdict, target.time.rate(1.0), gate)
