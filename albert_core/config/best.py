"""Decides which of two evaluations of a run is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")

Mode = Literal["min", "max"]

# The figures of training on texts. A workload's own have names of its own.
METRICS = (
    *("eval/loss", "eval/accuracy", "eval/f1_macro", "eval/f1", "eval/f1_micro", "eval/pearsonr", "eval/spearmanr"),
    *("eval/rmse", "eval/exact_match", "eval/exact", "eval/best_exact", "eval/best_f1"),
)
LOWER_IS_BETTER = ("eval/loss", "eval/rmse")

# Names in the files of runs on texts from before metrics had those of the library `evaluate`.
_FORMER = {
    "eval/pearson": "eval/pearsonr",
    "eval/spearman": "eval/spearmanr",
    "eval/subset_accuracy": "eval/accuracy",
}


def metric_name(name: str, workload: str | None = None) -> str:
    """Today's name of a metric that a run's file names. The figures of a `workload` are the user's, and keep theirs."""
    return name if workload else _FORMER.get(name, name)


def metric_names(figures: Mapping[str, T], workload: str | None = None) -> dict[str, T]:
    """The same for each of some figures."""
    return {metric_name(name, workload): value for name, value in figures.items()}


@dataclass(frozen=True)
class Best:
    """Ranks evaluations: the best has the lowest ("min") or highest ("max") `metric`. Among equals, the earliest wins.

    An evaluation without the metric, or with NaN, is never the best.
    """

    metric: str
    mode: Mode

    @classmethod
    def by(cls, metric: str, mode: Mode | None = None) -> Best:
        """Ranks by `metric`. Without a `mode`, lower is better for losses and errors, higher for everything else."""
        return cls(metric, mode or ("min" if metric in LOWER_IS_BETTER else "max"))

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> Best:
        """Ranks as the configuration says that a checkpoint has."""
        metric = metric_name(recorded["checkpoint_metric"], recorded.get("workload"))
        return cls.by(metric, recorded["checkpoint_metric_mode"])

    @property
    def words(self) -> str:
        """Its name in tables, such as "best by accuracy". An unusual mode is included."""
        unusual = "" if self == Best.by(self.metric) else f" ({self.mode})"
        return f"best by {self.metric.removeprefix('eval/')}{unusual}"

    def rank(self, found: Iterable[T], metrics_of: Callable[[T], Mapping[str, Any]]) -> list[T]:
        """Those of `found` (earliest first) that have the metric, best first. `metrics_of` returns the metrics."""
        costs = [(self._cost(metrics_of(item)), item) for item in found]
        measured = [(cost, item) for cost, item in costs if not math.isnan(cost)]
        return [item for _, item in sorted(measured, key=lambda pair: pair[0])]

    def first(self, evaluations: Iterable[Mapping[str, float]]) -> dict[str, float]:
        """The best of `evaluations` (metrics and step each, in any order). Empty if none has the metric."""
        by_step = sorted(evaluations, key=lambda metrics: metrics["step"])
        return next((dict(best) for best in self.rank(by_step, lambda metrics: metrics)), {})

    def improves(self, evaluation: Mapping[str, float], best: Mapping[str, float], threshold: float) -> bool:
        """Whether `evaluation` is better than the `best` before it by more than `threshold`. The first one is."""
        return not best or self._cost(best) - self._cost(evaluation) > threshold

    def _cost(self, metrics: Mapping[str, Any]) -> float:
        value = float(metrics.get(self.metric, math.nan))
        return -value if self.mode == "max" else value
