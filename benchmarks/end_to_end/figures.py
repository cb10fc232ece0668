"""Figures of end-to-end runs: each side's work over its seconds, held against the limits of the device they ran on."""

from __future__ import annotations

from ..harness.document import Work
from ..harness.statistics import median_interval
from ..outcome import limits
from ..outcome.build import rates
from ..outcome.end_to_end import Counted, Side, WholeProcess
from ..outcome.gates import gate_limits
from ..outcome.model import Energy, Rates

ONLY_A_PART = "unavailable: only a part of the run was run"


def with_figures(sides: list[Side], counted: Counted, seed: int) -> list[Side]:
    """The sides; those that have `seconds` with their work, rates, energy, shares of the peak and place under the roof.

    A side faster than the device's own peak gets a reason, which makes it invalid; all rates of a side share the
    interval of its seconds.
    """
    loops = iter(counted.loops)
    return [
        side
        if side.seconds is None
        else _with_figures(side, next(loops) if side.extrapolated else counted.work, counted, seed)
        for side in sides
    ]


def _with_figures(side: Side, work: Work, counted: Counted, seed: int) -> Side:
    assert side.seconds is not None, "sides with seconds only"
    figures, peaks, real = Rates(**rates(side.seconds, work)), counted.peaks, counted.device.real
    roofline = limits.roofline(work, figures, peaks) if real else None
    findings = list(gate_limits(work, side.seconds.median, figures, peaks, roofline))
    reasons = [*side.reasons, *(finding.text for finding in findings if not finding.warning)]
    found = {
        "work": work,
        "figures": figures,
        "energy": _energy(side, work, seed),
        "share_of_peak": limits.share_of_peak(figures, peaks) if real else None,
        "roofline": roofline,
        "reasons": reasons,
        "warnings": [*side.warnings, *(finding.text for finding in findings if finding.warning)],
        "valid": side.valid and not reasons,
    }
    return side.model_copy(update=found)


def _energy(side: Side, work: Work, seed: int) -> Energy:
    """Joules a text from the runs' counters, from the opened device to the end, or why there are none."""
    told = [process.energy for process in side.processes if isinstance(process, WholeProcess)]
    if not told:
        return Energy(source=ONLY_A_PART, joules_per_sample=None, n=0)
    joules = [one.joules for one in told if one.joules is not None and one.joules > 0.0]
    if len(joules) < len(told):
        unread = next((one.source for one in told if one.joules is None), None)
        source = unread or "unavailable: the counter stood still during a run"
        return Energy(source=source, joules_per_sample=None, n=0)
    per_text = [[one / work.samples] for one in joules]
    return Energy(source=told[0].source, joules_per_sample=median_interval(per_text, seed), n=len(per_text))
