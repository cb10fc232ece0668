"""A run's evaluations, read from its ``metrics.jsonl`` for tables and charts, even during training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ..config.best import Best, metric_names
from ..config.parsing import parse_json
from .folder import RunFolder, workload_of

# How metrics.jsonl writes numbers that JSON lacks. Any other text is a name, such as a backend's.
_NOT_IN_JSON = ("NaN", "Infinity", "-Infinity")


def evaluations(run: RunFolder) -> list[dict[str, Any]]:
    """One mapping per evaluation, in order: step, epoch, ``train/loss`` and the metrics.

    ``train/loss`` is the mean since the previous evaluation, in nats. Numbers that JSON lacks are NaN or infinite
    again. Truncated lines and lines without figures are skipped.
    """
    if not run.metrics.is_file():
        return []
    rows, workload = [], workload_of(run)
    for line in run.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = parse_json(line, run.metrics, "")
        except ValueError:
            continue
        if isinstance(values, dict) and {"step", "eval/loss"} <= values.keys():
            values["train/loss"] = values.pop("train/loss_since_evaluation", math.nan)
            read = {name: float(value) if value in _NOT_IN_JSON else value for name, value in values.items()}
            rows.append(metric_names(read, workload))
    return rows


def best_evaluation(
    run: RunFolder, best: Best, others: Iterable[dict[str, Any]] = (), until: float = math.inf
) -> dict[str, float]:
    """Metrics and step of the best evaluation by `best` from step 1 to `until`. Empty if nothing is known.

    `others` are evaluations that metrics.jsonl may lack, such as those of a run fetched from remote storage.
    """
    workload = workload_of(run)
    known = [
        metric_names({name: float(row[name]) for name in row if name == "step" or name.startswith("eval/")}, workload)
        for row in (*evaluations(run), *others)
        if 1 <= row["step"] <= until
    ]
    return best.first(known)
