"""From traces to one result (schema/parity-2.json): every candidate judged, and how the whole ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ... import UserError
from ..harness import environment
from ..harness.plan import hash_of
from .bands import COARSE_FACTOR, FACTOR
from .head_checks import unjudged
from .judge import DIVERGED_VERDICT, DRIFT, FAILED, PASS, REFUSED, judge
from .trace import SERIES, Trace, check_reference, error_budget_folders, read_trace

SCHEMA = "isotrain.parity/2"
# Exit codes: all pass, one is outside its band, one could not be compared.
ALL_PASS, OUTSIDE, NOT_COMPARED = 0, 1, 2


@dataclass(frozen=True)
class Missing:
    """A candidate without a usable trace, and why."""

    label: str
    reason: str
    verdict: str = FAILED


def compare(reference: Path, candidates: Sequence[Path]) -> dict[str, Any]:
    """The result of judging traces on disk. Raises UserError for a reference that can't judge.

    A candidate that can't be read is kept in the result with the reason.
    """
    exact = read_trace(reference)
    check_reference(exact)
    sides: list[Trace | Missing] = []
    for folder in candidates:
        try:
            sides.append(read_trace(folder))
        except UserError as error:
            sides.append(Missing(folder.name, " ".join(str(error).split()), REFUSED))
    return build_result(exact, _told_apart(sides))


def _told_apart(sides: Sequence[Trace | Missing]) -> list[Trace | Missing]:
    """Traces of one label get their folders' names beside it."""
    labels = [side.label for side in sides]
    return [
        replace(side, header=side.header | {"label": f"{side.label} [{side.folder}]"})
        if isinstance(side, Trace) and labels.count(side.label) > 1
        else side
        for side in sides
    ]


def build_result(
    reference: Trace, candidates: Sequence[Trace | Missing], seeds: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The whole result; `seeds` is what `seeds.equivalence` found, where several seeds were run."""
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(environment.command_line()),
        "status": "partial" if any(isinstance(one, Missing) for one in candidates) else "complete",
        "notes": _notes(reference, candidates),
        "reference": {
            **_side(reference),
            "series": {
                "step": list(range(1, reference.steps + 1)),
                **{name: [float(value) for value in reference.arrays[name]] for name in SERIES},
            },
        },
        "steps": reference.steps,
        "weights_sha256": reference.header["weights_sha256"],
        "batches_sha256": hash_of(reference.header["batches"]),
        "recipe": reference.header["recipe"],
        "tolerance": {"float32": FACTOR, "bfloat16": COARSE_FACTOR},
        "candidates": [_candidate(reference, one) for one in candidates],
        "seeds": dict(seeds) if seeds is not None else None,
    }


def exit_code(result: Mapping[str, Any]) -> int:
    verdicts = {candidate["verdict"] for candidate in result["candidates"]}
    verdicts |= {one["verdict"] for one in (result["seeds"] or {}).get("candidates", ()) if one["verdict"] == FAILED}
    if verdicts & {FAILED, REFUSED}:
        return NOT_COMPARED
    differing = {one["verdict"] for one in (result["seeds"] or {}).get("candidates", ())} - {"equivalent"}
    return OUTSIDE if verdicts & {DRIFT, DIVERGED_VERDICT} or differing else ALL_PASS


def _candidate(reference: Trace, candidate: Trace | Missing) -> dict[str, Any]:
    if isinstance(candidate, Missing):
        return {"label": candidate.label, "verdict": candidate.verdict, "reasons": [candidate.reason]}
    folders = error_budget_folders(reference.folder, candidate.header["error_budget"]["label"])
    try:
        found = judge(reference, candidate, [read_trace(folder) for folder in folders])
    except UserError as error:
        return {**_side(candidate), "verdict": REFUSED, "reasons": [" ".join(str(error).split())]}
    return {
        **_side(candidate),
        "verdict": found.verdict,
        "reasons": found.reasons,
        "worst": found.worst if found.worst != float("inf") else None,
        "first_step": found.first_step,
        "layer": found.layer,
        "cause": found.cause,
        "error_budget": candidate.header["error_budget"]["label"],
        "draws": len(folders),
        "ended": candidate.header["ended"],
        **found.details,
    }


def _side(trace: Trace) -> dict[str, Any]:
    header = trace.header
    return {
        "label": header["label"],
        "backend": header["backend"],
        "device": header["device"],
        "policy": header["policy"]["label"],
        "kernel": header["kernel"],
        "layout": header["layout"],
        "emulated": header["emulated"],
        "random_weights": header["random_weights"],
        "model": header["model"],
        "dataset": header["dataset"],
        "environment": {key: header["environment"][key] for key in ("isotrain", "python", "torch", "platform")},
    }


def _notes(reference: Trace, candidates: Sequence[Trace | Missing]) -> list[str]:
    notes = []
    if reference.header["random_weights"]:
        notes.append(f"random weights: {reference.header['model']}; losses are compared, no accuracy means anything")
    traces = [one for one in candidates if isinstance(one, Trace)]
    if any(one.header["emulated"] for one in traces):
        notes.append("emulated: the arithmetic is a card's, the run was the host's")
    notes += dict.fromkeys(note for one in traces for note in unjudged(reference, one))
    verdicts = [one for one in candidates if isinstance(one, Missing)]
    if verdicts:
        notes.append(f"not compared: {', '.join(one.label for one in verdicts)}")
    for one in traces:
        if one.header["ended"] is not None:
            reason = one.header["ended"]["reason"]
            notes.append(
                f"{one.label} could not train beyond step {one.steps}: {reason}; it is judged as far as it came"
            )
    if reference.header["dropout_off"]:
        notes.append("dropout was off on every side: its masks differ between dtypes and devices")
    return notes


__all__ = ["ALL_PASS", "NOT_COMPARED", "OUTSIDE", "PASS", "Missing", "build_result", "compare", "exit_code"]
