"""What is shown about a candidate beside its verdict: errors, bands and figures, as JSON. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..outcome.parity import Distances, Epoch, LayerError, Probe, Quantity, Series, Shown
from ..outcome.trace_header import Evaluation
from .bands import Check, rms
from .trace import SERIES, Trace


def distances(exact: np.ndarray, found: np.ndarray) -> tuple[float | None, float | None]:
    """Relative L2 distance and largest absolute error; None if a value isn't finite, since JSON has no NaN."""
    error = found.astype(np.float64) - exact
    if not np.isfinite(error).all():
        return None, None
    return rms(error) / max(rms(exact), 1e-300), float(np.abs(error).max())


def details(
    reference: Trace,
    candidate: Trace,
    loss_allowed: Sequence[float],
    logits_allowed: float,
    layers: list[LayerError],
    metrics: Sequence[Check],
    checks: Sequence[Check],
) -> Shown:
    """What a result shows about a candidate beside its verdict.

    Args:
        loss_allowed: The band of each step.
        logits_allowed: The root mean square band of the last evaluation's logits.
        metrics: The checks of each evaluation's figures, in order.
        checks: All checks.
    """
    bands = iter(metrics)
    exact, found = reference.loss, candidate.loss
    expected, last = reference.probe_logits[-1], candidate.probe_logits[-1]
    relative, most = distances(expected, last)
    own = {name: distances(reference.arrays[name], candidate.arrays[name])[0] for name in SERIES}
    return Shown(
        relative_l2=Distances(**own),
        series=Series(
            step=list(range(1, candidate.steps + 1)),
            **{name: _finite(candidate.arrays[name]) for name in SERIES},
            loss_low=_finite(exact - np.asarray(loss_allowed)),
            loss_high=_finite(exact + np.asarray(loss_allowed)),
            relative_error=_finite(np.abs(found - exact) / np.maximum(np.abs(exact), 1e-300)),
        ),
        layers=layers,
        probe=Probe(
            relative_l2=relative,
            max_abs=most,
            pcc=_correlation(expected, last),
            allowed=logits_allowed / max(rms(expected), 1e-300),
        ),
        metrics=[
            _epoch(ours, theirs, bands)
            for ours, theirs in zip(reference.header.metrics, candidate.header.metrics, strict=False)
        ],
        checks=_largest(checks),
    )


def _epoch(ours: Evaluation, theirs: Evaluation, bands: Iterator[Check]) -> Epoch:
    """An evaluation beside the reference's. `bands` yields a check for each figure."""
    values: dict[str, float | None] = {}
    for name, expected in ours.figures.items():
        values[name] = _number(theirs.figures.get(name))
        values[f"reference_{name}"] = _number(expected)
        values[f"allowed_{name}"] = _number(next(bands).allowed)
    return Epoch.model_validate({"epoch": ours.epoch, **values})


def _largest(checks: Sequence[Check]) -> list[Quantity]:
    """For each quantity (all layers are one), the check nearest to its limit, or farthest beyond it."""
    found: dict[str, Check] = {}
    for check in checks:
        kind = check.quantity.removesuffix(", largest error")
        if kind.startswith("layer "):
            kind = "alone" if kind.endswith(" alone") else "layer"
        if kind not in found or not check.ratio <= found[kind].ratio:
            found[kind] = check
    return [
        Quantity(
            quantity=check.quantity,
            step=check.step,
            error=_number(check.error),
            allowed=check.allowed,
            ratio=_number(check.ratio),
        )
        for check in found.values()
    ]


def _correlation(exact: np.ndarray, found: np.ndarray) -> float | None:
    """Pearson's correlation. It isn't judged, since it hides large errors of a few elements."""
    if not np.isfinite(found).all() or np.ptp(found) == 0 or np.ptp(exact) == 0:
        return None
    return float(np.corrcoef(exact.ravel(), found.ravel())[0, 1])


def _finite(values: np.ndarray) -> list[float | None]:
    return [_number(float(value)) for value in values]


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
