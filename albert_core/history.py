"""A run's evaluations, read back from its ``metrics.jsonl``: for tables and charts, also while it trains."""

from __future__ import annotations

import json
from typing import Any

from .run import RunFolder

# How metrics.jsonl writes what JSON has no number for. Any other text there is a name, such as an emulated device's.
_NOT_IN_JSON = ("NaN", "Infinity", "-Infinity")


def evaluations(run: RunFolder) -> list[dict[str, Any]]:
    """One mapping an evaluation, in their order: step, epoch, ``train/loss`` (the mean since the evaluation before,
    nats) and the metrics. Numbers that JSON doesn't have are NaN or infinite again.
    """
    if not run.metrics.is_file():
        return []
    rows = []
    for line in run.metrics.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if "eval/loss" in values:
            values["train/loss"] = values.pop("train/loss_since_evaluation")
            rows.append({name: float(value) if value in _NOT_IN_JSON else value for name, value in values.items()})
    return rows
