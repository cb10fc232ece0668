"""Judges the traces of all candidates and makes one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ... import UserError
from ..harness import environment
from ..harness.plan import hash_of
from ..outcome.parity import (
    PARITY,
    Candidate,
    Curve,
    Judged,
    Parity,
    Seeds,
    Series,
    SideEnvironment,
    Trained,
    Uncompared,
)
from .bands import COARSE_FACTOR, FACTOR
from .head_checks import unjudged
from .judge import DIVERGED_VERDICT, DRIFT, FAILED, REFUSED, judge
from .seeds import EQUIVALENT
from .trace import HEADER_FILE, SERIES, Trace, check_reference, error_budget_folders, read_trace

# Exit codes.
ALL_PASS, OUTSIDE, NOT_COMPARED = 0, 1, 2
# The ends of the names of files that a comparison writes beside its traces.
OWN_FILES = (".log", ".asked", ".answer.json", "parity.json")


@dataclass(frozen=True)
class Missing:
    """A candidate without a usable trace, and the reason."""

    label: str
    reason: str
    verdict: Literal["refused", "failed"] = FAILED


def compare(reference: Path, candidates: Sequence[Path]) -> Parity:
    """Judges traces on disk. A candidate that can't be read is in the result with the reason.

    Args:
        candidates: Traces, or what a comparison writes beside them: a folder stands for the traces in it, and the
            other files are passed over.

    Raises:
        UserError: The reference can't judge.
    """
    exact = read_trace(reference)
    check_reference(exact)
    sides: list[Trace | Missing] = []
    for folder in _traces(candidates):
        try:
            sides.append(read_trace(folder))
        except UserError as error:
            sides.append(Missing(folder.name, " ".join(str(error).split()), REFUSED))
    return build_result(exact, _with_folders(sides))


def _traces(candidates: Sequence[Path]) -> list[Path]:
    """The folders of traces among what a pattern such as ``candidates/*`` names."""
    found = []
    for path in candidates:
        inside = sorted(entry.parent for entry in path.glob(f"*/{HEADER_FILE}")) if path.is_dir() else []
        if inside and not (path / HEADER_FILE).is_file():
            found += inside
        elif not (path.is_file() and path.name.endswith(OWN_FILES)):
            found.append(path)
    if not found:
        raise UserError(f"no trace is among {', '.join(map(str, candidates))}; give folders with {HEADER_FILE}")
    return found


def _with_folders(sides: Sequence[Trace | Missing]) -> list[Trace | Missing]:
    """Adds folder names to the labels of traces with equal labels."""
    labels = [side.label for side in sides]
    return [
        replace(side, header=side.header.model_copy(update={"label": f"{side.label} [{side.folder}]"}))
        if isinstance(side, Trace) and labels.count(side.label) > 1
        else side
        for side in sides
    ]


def build_result(reference: Trace, candidates: Sequence[Trace | Missing], seeds: Seeds | None = None) -> Parity:
    """The whole result. `seeds` is the outcome of the test over several seeds, if they were run."""
    header = reference.header
    judged = [_candidate(reference, one) for one in candidates]
    curves: dict[str, Curve] = {name: [float(value) for value in reference.arrays[name]] for name in SERIES}
    series = Series(step=list(range(1, reference.steps + 1)), **curves)
    return Parity(
        schema=PARITY,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=" ".join(environment.command_line()),
        status="partial" if any(isinstance(one, Missing) for one in candidates) else "complete",
        notes=[*_notes(reference, candidates), *_unknown(judged)],
        reference=Trained(**_side(reference), series=series),
        steps=reference.steps,
        weights_sha256=header.weights_sha256,
        batches_sha256=hash_of(header.batches),
        recipe=header.recipe,
        tolerance={"float32": FACTOR, "bfloat16": COARSE_FACTOR},
        candidates=judged,
        seeds=seeds,
    )


def exit_code(result: Parity) -> int:
    verdicts: set[str] = {candidate.verdict for candidate in result.candidates}
    tests: set[str] = {one.verdict for one in result.seeds.candidates} if result.seeds else set()
    if (verdicts | tests) & {FAILED, REFUSED}:
        return NOT_COMPARED
    return OUTSIDE if verdicts & {DRIFT, DIVERGED_VERDICT} or tests - {EQUIVALENT} else ALL_PASS


def _candidate(reference: Trace, candidate: Trace | Missing) -> Candidate:
    if isinstance(candidate, Missing):
        return Uncompared(label=candidate.label, verdict=candidate.verdict, reasons=[candidate.reason])
    label = candidate.header.error_budget.label
    folders = error_budget_folders(reference.folder, label)
    try:
        draws = [read_trace(folder) for folder in folders]
        found = judge(reference, candidate, draws)
    except UserError as error:
        return Uncompared(**_side(candidate), verdict=REFUSED, reasons=[" ".join(str(error).split())])
    if found.verdict == REFUSED or found.details is None:
        return Uncompared(**_side(candidate), verdict=REFUSED, reasons=found.reasons)
    return Judged(
        **_side(candidate),
        verdict=found.verdict,
        reasons=found.reasons,
        worst=found.worst if found.worst != float("inf") else None,
        first_step=found.first_step,
        layer=found.layer,
        cause=found.cause,
        error_budget=label,
        draws=len(draws),
        unknown=list(dict.fromkeys(name for draw in draws for name in draw.header.unknown)),
        ended=candidate.header.ended,
        **found.details.given(),
    )


def _side(trace: Trace) -> dict[str, Any]:
    """The fields of `Trained` from a trace's header, without the series."""
    header = trace.header
    kept = {name: getattr(header, name) for name in Trained.model_fields if name not in ("policy", "series")}
    machine = {name: getattr(header.environment, name) for name in SideEnvironment.model_fields}
    return kept | {"policy": header.policy.label, "environment": SideEnvironment(**machine)}


def _notes(reference: Trace, candidates: Sequence[Trace | Missing]) -> list[str]:
    notes = []
    if reference.header.random_weights:
        notes.append(f"random weights: {reference.header.model}; losses are compared, no accuracy means anything")
    traces = [one for one in candidates if isinstance(one, Trace)]
    names = [one.header.backend for one in traces if one.header.emulated]
    if names:
        notes.append(f"{', '.join(dict.fromkeys(names))}: emulated on the host, no card was run")
    notes += dict.fromkeys(note for one in traces for note in unjudged(reference, one))
    verdicts = [one for one in candidates if isinstance(one, Missing)]
    if verdicts:
        notes.append(f"not compared: {', '.join(one.label for one in verdicts)}")
    for one in traces:
        if one.header.ended is not None:
            reason = one.header.ended.reason
            notes.append(
                f"{one.label} could not train beyond step {one.steps}: {reason}; it is judged as far as it came"
            )
    if reference.header.dropout_off:
        notes.append("dropout was off on every side: its masks differ between dtypes and devices")
    return notes


def _unknown(candidates: Sequence[Candidate]) -> list[str]:
    """Notes on operations that error budgets compute in float32, whatever the device does."""
    found = {one.error_budget: one.unknown for one in candidates if isinstance(one, Judged) and one.unknown}
    return [
        f"the error budget {label} doesn't know {', '.join(names)} and has them in float32: a device that computes "
        "them less precisely may be outside its band and yet be right"
        for label, names in found.items()
    ]
