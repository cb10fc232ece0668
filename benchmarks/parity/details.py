"""What is shown of a candidate beside its verdict: errors, bands and figures as JSON holds them. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .bands import Check, rms
from .evaluations import figures
from .trace import SERIES, Trace


def distances(exact: np.ndarray, found: np.ndarray) -> dict[str, float | None]:
    """Relative L2 distance and largest absolute error; None where a value isn't finite (JSON has no NaN)."""
    error = found.astype(np.float64) - exact
    if not np.isfinite(error).all():
        return {"relative_l2": None, "max_abs": None}
    return {"relative_l2": rms(error) / max(rms(exact), 1e-300), "max_abs": float(np.abs(error).max())}


def details(
    reference: Trace,
    candidate: Trace,
    loss_allowed: Sequence[float],
    logits_allowed: float,
    layers: list[dict[str, Any]],
    metrics: Sequence[Check],
    checks: Sequence[Check],
) -> dict[str, Any]:
    """What isotrain.parity/2 shows of a candidate beside its verdict.

    loss_allowed: each step's band; logits_allowed: that of the last evaluation's logits, root mean square.
    metrics: the checks of each evaluation's figures, in their order; checks: all of them.
    """
    bands = iter(metrics)
    exact = reference.arrays["loss"]
    found = candidate.arrays["loss"]
    last = candidate.arrays["probe_logits"][-1]
    expected = reference.arrays["probe_logits"][-1]
    probe = {
        **distances(expected, last),
        "pcc": _correlation(expected, last),
        "allowed": logits_allowed / max(rms(expected), 1e-300),
    }
    return {
        "relative_l2": {
            name: distances(reference.arrays[name], candidate.arrays[name])["relative_l2"] for name in SERIES
        },
        "series": {
            "step": list(range(1, candidate.steps + 1)),
            **{name: _finite(candidate.arrays[name]) for name in SERIES},
            "loss_low": _finite(exact - np.asarray(loss_allowed)),
            "loss_high": _finite(exact + np.asarray(loss_allowed)),
            "relative_error": _finite(np.abs(found - exact) / np.maximum(np.abs(exact), 1e-300)),
        },
        "layers": layers,
        "probe": probe,
        "metrics": [
            {
                "epoch": ours["epoch"],
                **{key: _number(theirs.get(key)) for key in figures(ours)},
                **{f"reference_{key}": _number(ours.get(key)) for key in figures(ours)},
                **{f"allowed_{key}": _number(next(bands).allowed) for key in figures(ours)},
            }
            for ours, theirs in zip(reference.header["metrics"], candidate.header["metrics"], strict=False)
        ],
        "checks": _largest(checks),
    }


def _largest(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Of each quantity (all layers are one) the moment nearest to its limit, or farthest beyond it."""
    found: dict[str, Check] = {}
    for check in checks:
        kind = check.quantity.removesuffix(", largest error")
        if kind.startswith("layer "):
            kind = "alone" if kind.endswith(" alone") else "layer"
        if kind not in found or not check.ratio <= found[kind].ratio:
            found[kind] = check
    return [
        {
            "quantity": check.quantity,
            "step": check.step,
            "error": _number(check.error),
            "allowed": check.allowed,
            "ratio": _number(check.ratio),
        }
        for check in found.values()
    ]


def _correlation(exact: np.ndarray, found: np.ndarray) -> float | None:
    """Pearson's, for those who ask; it decides nothing, for it hides a large error of few elements."""
    if not np.isfinite(found).all() or np.ptp(found) == 0 or np.ptp(exact) == 0:
        return None
    return float(np.corrcoef(exact.ravel(), found.ravel())[0, 1])


def _finite(values: np.ndarray) -> list[float | None]:
    return [_number(float(value)) for value in values]


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
