"""The changing part of a training run: counters and sums."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..config.best import Best
from ..processes.ranks import ALONE, Ranks
from .collapse import CollapseWatch


@dataclass
class TrainingState:
    """Counters and accumulators.

    Attributes:
        zeros: Zeros, float32 [2], that `sums` starts with. A compiled step without them would be another program.
        sums: Summed loss and number of correct answers of `samples` samples since the last log line, float32 [2]. They
            stay on the device until they are needed.
        recent: Summed loss and number of samples since the last evaluation.
        counted: The part of `sums` and `samples` that `recent` already contains.
        unimproved: Evaluations in a row that were not better than the best before them, by more than
            `early_stopping_threshold`.
        gradient_norm: The norm of the newest step's gradient, on the device, if known.
    """

    zeros: torch.Tensor
    step: int = 0
    samples: int = 0
    last_evaluation: dict[str, float] = field(default_factory=dict)
    evaluated_at: int = -1
    best: dict[str, float] = field(default_factory=dict)
    recent: tuple[float, int] = (0.0, 0)
    counted: tuple[float, int] = (0.0, 0)
    unimproved: int = 0
    gradient_norm: torch.Tensor | None = None
    watch: CollapseWatch = field(default_factory=CollapseWatch)

    def __post_init__(self) -> None:
        self.sums = self.zeros

    def add(self, sums: torch.Tensor, samples: int) -> None:
        """Adds the result of an optimizer step over `samples` samples: summed loss and number of correct answers."""
        self.sums = self.sums + sums
        self.samples += samples

    def peek_means(self, ranks: Ranks = ALONE) -> tuple[float, float]:
        """Mean loss per sample and share of correct answers since `take_means`, over all processes. Zeros without a
        step.

        `samples` counts the samples of all processes, while `sums` covers this process's shares.
        """
        if not self.samples:
            return 0.0, 0.0
        loss, right = ranks.total(self.sums).tolist()
        return loss / self.samples, right / self.samples

    def take_means(self, ranks: Ranks = ALONE) -> tuple[float, float]:
        """Like `peek_means`, and starts over."""
        means = self.peek_means(ranks)
        self._count(means[0])
        self.sums, self.samples, self.counted = self.zeros, 0, (0.0, 0)
        return means

    def take_recent_loss(self, ranks: Ranks = ALONE) -> float:
        """Mean training loss per sample since the last call, in nats. Log lines in between don't affect it."""
        self._count(self.peek_means(ranks)[0])
        total, samples = self.recent
        self.recent = (0.0, 0)
        return total / max(1, samples)

    def _count(self, mean: float) -> None:
        total = mean * self.samples
        self.recent = (self.recent[0] + total - self.counted[0], self.recent[1] + self.samples - self.counted[1])
        self.counted = (total, self.samples)

    def record_evaluation(self, metrics: dict[str, float], best: Best, threshold: float) -> None:
        """Stores the newest evaluation and, ranked by `best`, the best one. The first of equals stays.

        An evaluation before the first step is never the best.
        """
        self.last_evaluation, self.evaluated_at = dict(metrics), self.step
        if self.step == 0:
            return
        evaluated = {**metrics, "step": float(self.step)}
        self.unimproved = 0 if best.improves(evaluated, self.best, threshold) else self.unimproved + 1
        self.best = best.first([self.best, evaluated] if self.best else [evaluated])
