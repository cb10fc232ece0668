"""Checks of the head: its inputs, and its training on the reference's features. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .bands import COARSE, COARSE_FACTOR, FACTOR, Check, bias_corrections, mean_so_far, series_checks, tensor_checks
from .trace import HEAD_SERIES, Trace

# Marks the quantities of a replay of the head.
GIVEN = "given the reference's features"


def feature_checks(reference: Trace, candidate: Trace, error_budgets: Sequence[Trace], m: float) -> list[Check]:
    """Checks the features of the probe texts and of each step's texts; none if a trace lacks them (see `unjudged`)."""
    traces = (reference, candidate, *error_budgets)
    if not all("features" in trace.arrays for trace in traces):
        return []
    exact, found, *drawn = (trace.arrays["probe_features"][0] for trace in traces)
    checks = tensor_checks("features of the probe texts", 0, exact, found, drawn, m)
    stop = 0
    for step, size in enumerate(candidate.header.batch_sizes or [], start=1):
        rows = slice(stop, stop + size)
        stop += size
        exact, found, *drawn = (trace.arrays["features"][rows] for trace in traces)
        if not len(exact) or not len(found):
            break
        checks += tensor_checks("features", step, exact, found, drawn, m)
    return checks


def head_checks(reference: Trace, candidate: Trace, error_budgets: Sequence[Trace], m: float) -> list[Check]:
    """Checks the head trained on the reference's features, in the band of its own dtype; none without this replay.

    Args:
        m: The factor for the candidate's encoder. The head has it, too, if the error budget emulates the device.
    """
    traces = (reference, candidate, *error_budgets)
    if not all("head_loss" in trace.arrays for trace in traces) or candidate.header.replayed_sha256 is None:
        return []
    promised = candidate.header.error_budget
    if promised.draws:
        m = COARSE_FACTOR if promised.head_dtype in COARSE else FACTOR
    steps = len(candidate.arrays["head_loss"])
    checks = []
    if steps:
        for name in HEAD_SERIES:
            checks += series_checks(f"head_{name}", f"{name} {GIVEN}", reference, candidate, error_budgets, m)
    if steps < len(reference.arrays["head_loss"]):
        checks.append(Check(f"loss {GIVEN}", steps, float("inf"), 0.0))
    corrections = np.concatenate(([0.0], mean_so_far(bias_corrections(candidate.header.adam_on_device, steps))))
    exact = reference.arrays["head_logits"]
    moments = [0, *(entry.step for entry in reference.header.metrics)]
    for index, logits in enumerate(candidate.arrays["head_logits"][: len(exact)]):
        step = min(moments[index], len(corrections) - 1) if index < len(moments) else steps
        checks += tensor_checks(
            f"logits {GIVEN}",
            step,
            exact[index],
            logits,
            [error_budget.arrays["head_logits"][index] for error_budget in error_budgets],
            m,
            float(corrections[step]) * np.abs(exact[index] - exact[0]),
        )
    return checks


def unjudged(reference: Trace, candidate: Trace) -> list[str]:
    """Notes on what could not be judged, since a trace lacks it."""
    notes = []
    if reference.of_module and not reference.states:
        notes.append(
            f"{reference.header.model} has no layers to replay; give it a ModuleList, or the workload a method layers"
        )
    elif not candidate.replays:
        notes.append("a trace without a replay: its layers' own errors are unknown (record with --replay-from)")
    for trace in (reference, candidate):
        if trace.header.batch_sizes is None:
            notes.append(
                f"{trace.label} was recorded by an earlier version: features, head and right answers are not judged; "
                "record it again"
            )
    return notes
