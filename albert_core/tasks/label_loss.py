"""The cross entropy of labels: label smoothing, class weights, and between which bounds it lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from ..tokens.order import IGNORED


@dataclass(frozen=True, eq=False)
class LabelLoss:
    """``torch.nn.functional.cross_entropy`` with its `label_smoothing` and `weight`.

    The mean over some rows is, as in torch, their summed loss divided by the summed weight of their labels.

    Attributes:
        classes: The number of the head's outputs. It matters to smoothing only.
        smoothing: The share of every target that is spread over all classes.
        weights: One per class, [classes], in the head's dtype on the device. None weighs all alike.
    """

    classes: int = 0
    smoothing: float = 0.0
    weights: torch.Tensor | None = None

    def summed(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The rows' summed loss in nats. Rows with the label IGNORED don't count."""
        return functional.cross_entropy(
            logits,
            labels,
            self.weights,
            reduction="sum",
            ignore_index=IGNORED,
            label_smoothing=self.smoothing,
        )

    def weight(self, labels: torch.Tensor) -> torch.Tensor:
        """The summed weight of `labels`, int64 [B] on the device, as a scalar of at least float32."""
        assert self.weights is not None, "without class weights, rows are counted"
        of_rows = self.weights[labels.clamp(min=0)] * (labels != IGNORED)
        return of_rows.sum(dtype=torch.promote_types(of_rows.dtype, torch.float32))

    def chance(self, labels: np.ndarray) -> float:
        """The mean loss over `labels`, int64 [N], of the best model that gives all rows the same answer."""
        counts, weights = self._counted(labels)
        own, shared = (1 - self.smoothing) * counts * weights, self._shared(weights)
        return float(_entropy(own + counts.sum() * shared) / (counts @ weights))

    def least(self, labels: np.ndarray) -> float:
        """The mean loss over `labels`, int64 [N], of a model that gives each row its target's very probabilities."""
        counts, weights = self._counted(labels)
        own, shared = (1 - self.smoothing) * weights, self._shared(weights)
        # A row's target is `shared` with `own` added to its label, so only that term differs between labels.
        terms = _x_log_x(shared).sum() - _x_log_x(shared) + _x_log_x(own + shared)
        return float(counts @ (_x_log_x(own + shared.sum()) - terms) / (counts @ weights))

    def _counted(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and weight of each class, float64 [classes]."""
        counts = np.bincount(labels, minlength=self.classes).astype(np.float64)
        weights = np.ones(len(counts)) if self.weights is None else self.weights.double().cpu().numpy()
        return counts, weights

    def _shared(self, weights: np.ndarray) -> np.ndarray:
        """What smoothing adds to each class in the target of every row."""
        return self.smoothing / len(weights) * weights


def balanced(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights by which all classes count the same, float64 [classes]: rows / (classes with rows * rows of the class).

    This is scikit-learn's "balanced". A class without a row weighs 1, which is the mean over all rows.
    """
    counts = np.bincount(labels, minlength=classes)
    return np.where(counts > 0, counts.sum() / ((counts > 0).sum() * np.maximum(counts, 1)), 1.0)


def _x_log_x(values: np.ndarray) -> np.ndarray:
    return values * np.log(np.where(values > 0, values, 1.0))


def _entropy(target: np.ndarray) -> float:
    """The cross entropy of an unnormalised target with the probabilities that it has itself."""
    return float(_x_log_x(target.sum()) - _x_log_x(target).sum())
