"""What one process can't see: whether the targets of a run fit each other and the device's limits (rule 6).

A target that fails a gate keeps its figures and gets a reason, which makes it invalid. Gates find, and change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from ..harness.document import Measured, Peaks, Work
from .answers import unjudged, wrong_answers
from .model import MeasuredTarget, Rates, Roofline, Target

# The peak is a measurement too; one that others contended may be this much too low.
PEAK_TOLERANCE = 1.05
CONTENDED_TOLERANCE = 3.0
# A cache reads a line before it overwrites it, which slows a copy: plain reading moves up to twice as many bytes.
COPY_TOLERANCE = 2.0


@dataclass(frozen=True)
class Finding:
    """Why a target is invalid, or (`warning`) what qualifies it."""

    text: str
    warning: bool = False


Findings = Iterator[tuple[MeasuredTarget, Finding]]


def judged(targets: Sequence[Target], documents: Sequence[Sequence[Measured]]) -> list[Target]:
    """The targets with the findings of every gate, valid where there is no reason against them.

    documents: what the processes of each target handed over.
    """
    measured = [target for target in targets if isinstance(target, MeasuredTarget)]
    found = [
        *gate_identity(measured),
        *((target, finding) for target in measured for finding in _of_limits(target)),
        *gate_growth(measured),
        *(
            (target, finding)
            for target, handed_over in zip(targets, documents, strict=True)
            if isinstance(target, MeasuredTarget)
            for finding in gate_answers(handed_over)
        ),
    ]
    judged: list[Target] = []
    for target in targets:
        own = [finding for one, finding in found if one is target]
        reasons = [*target.reasons, *(finding.text for finding in own if not finding.warning)]
        warnings = [*target.warnings, *(finding.text for finding in own if finding.warning)]
        judged.append(target.model_copy(update={"reasons": reasons, "warnings": warnings, "valid": not reasons}))
    return judged


def gate_identity(targets: Sequence[MeasuredTarget]) -> Findings:
    """All targets must have the same weights; those of one batch size, and baselines, the same texts."""
    compared = any(target.baseline for target in targets)
    first_of_size: dict[int, MeasuredTarget] = {}
    for target in targets:
        if target.model.sha256 != targets[0].model.sha256:
            yield target, Finding(f"its encoder weights are not those of {targets[0].label}")
        first = first_of_size.setdefault(0 if compared else target.batch_size, target)
        if target.data.sha256 != first.data.sha256:
            yield target, Finding(f"its texts are not those of {first.label}")


def _of_limits(target: MeasuredTarget) -> Iterator[Finding]:
    seconds = target.figures.step_seconds.median
    return gate_limits(target.work, seconds, target.figures, target.peaks, target.roofline)


def gate_limits(work: Work, seconds: float, rates: Rates, peaks: Peaks, roofline: Roofline | None) -> Iterator[Finding]:
    """Faster than the device's measured limits is impossible.

    Where other work contended the measurement of the peak, a little too fast is a warning, because the peak is known to
    be too low then. Bytes are the fewest that the work must move in its `seconds`.
    """
    held = [("TFLOP/s", rates.hardware_tflops.median, peaks.compute_limit, PEAK_TOLERANCE)]
    if roofline is not None:
        held.append(("GB/s", work.moved_bytes / seconds / 1e9, roofline.bandwidth_gbps, COPY_TOLERANCE))
    for unit, reached, limit, tolerance in held:
        text = f"{reached:.3g} {unit} is more than the measured peak of {limit:.3g}"
        if reached > (max(CONTENDED_TOLERANCE, tolerance) if peaks.contended else tolerance) * limit:
            yield Finding(f"{text}: the fence or the peak is wrong")
        elif reached > tolerance * limit:
            yield Finding(f"{text}, which other work on the machine contended: shares of it are too high", warning=True)


def gate_growth(targets: Sequence[MeasuredTarget]) -> Findings:
    """A step on a larger batch can't take less time; intervals that overlap decide nothing.

    Where other work had the CPUs while one of the two was measured, that may be why: a warning.
    """
    for small, large in combinations(sorted(targets, key=lambda target: target.batch_size), 2):
        if _kind(small) != _kind(large) or small.batch_size == large.batch_size:
            continue
        if large.figures.step_seconds.high < small.figures.step_seconds.low:
            found = f"its step takes less time than that of the smaller batch {small.batch_size}"
            if small.contended or large.contended:
                yield large, Finding(f"{found}, and other work on the machine contended them", warning=True)
            else:
                yield large, Finding(found)


def _kind(target: MeasuredTarget) -> tuple[str, ...]:
    return target.backend, target.workload, target.layout, target.kernel, target.dtype


def gate_answers(documents: Sequence[Measured]) -> Iterator[Finding]:
    """Every process of every target must give the logits of the float32 reference: fast and wrong is no result."""
    wrong = wrong_answers(documents)
    if wrong:
        yield Finding(wrong)
    elif unjudged(documents):
        yield Finding("none of the texts that are judged was run: nobody knows whether its logits are right", True)
