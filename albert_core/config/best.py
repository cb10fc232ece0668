"""What makes one evaluation of a run better than another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")

Mode = Literal["min", "max"]

LOSS = "eval/loss"


@dataclass(frozen=True)
class Best:
    """The best evaluation is the one whose `metric` is lowest ("min") or highest ("max"); of equal ones the earliest.

    An evaluation without the metric, or with NaN, is never best.
    """

    metric: str
    mode: Mode

    @classmethod
    def by(cls, metric: str, mode: Mode | None = None) -> Best:
        """By `metric`; where no `mode` is given, a loss is better when lower and everything else when higher."""
        return cls(metric, mode or ("min" if metric == LOSS else "max"))

    @property
    def words(self) -> str:
        """What a table calls it: "best by accuracy"; the mode is said where it is not the metric's own."""
        unusual = "" if self == Best.by(self.metric) else f" ({self.mode})"
        return f"best by {self.metric.removeprefix('eval/')}{unusual}"

    def rank(self, found: Iterable[T], metrics_of: Callable[[T], Mapping[str, Any]]) -> list[T]:
        """Those of `found` (earliest first) that were measured, the best first. `metrics_of` gives one's metrics."""
        costs = [(self._cost(metrics_of(item)), item) for item in found]
        measured = [(cost, item) for cost, item in costs if not math.isnan(cost)]
        return [item for _, item in sorted(measured, key=lambda pair: pair[0])]

    def first(self, evaluations: Iterable[Mapping[str, float]]) -> dict[str, float]:
        """The best of `evaluations` (metrics and the step of each, in any order); empty where none was measured."""
        by_step = sorted(evaluations, key=lambda metrics: metrics["step"])
        return next((dict(best) for best in self.rank(by_step, lambda metrics: metrics)), {})

    def _cost(self, metrics: Mapping[str, Any]) -> float:
        value = float(metrics.get(self.metric, math.nan))
        return -value if self.mode == "max" else value
