"""Figures of end-to-end runs: each side's work over its seconds, compared with the limits of the device."""

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
    """Adds work, rates, energy, share of the peak and roofline to the sides that have `seconds`.

    A side that is faster than the device's measured peak is invalid. All rates of a side have the relative interval of
    its seconds.
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
    """Joules per text from opening the device to the end, or why there are none."""
    readings = [process.energy for process in side.processes if isinstance(process, WholeProcess)]
    if not readings:
        return Energy(source=ONLY_A_PART, joules_per_sample=None, n=0)
    joules = [one.joules for one in readings if one.joules is not None and one.joules > 0.0]
    if len(joules) < len(readings):
        unread = next((one.source for one in readings if one.joules is None), None)
        source = unread or "unavailable: the counter stood still during a run"
        return Energy(source=source, joules_per_sample=None, n=0)
    per_text = [[one / work.samples] for one in joules]
    return Energy(source=readings[0].source, joules_per_sample=median_interval(per_text, seed), n=len(per_text))
