"""Figures of predicted labels."""

from __future__ import annotations

import numpy as np


def label_metrics(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """``eval/accuracy``, ``eval/f1_macro``, ``eval/f1`` and ``eval/largest_share`` of label ids, int64 [N] each.

    F1 is scikit-learn's. Macro-F1 is the unweighted mean over the labels that occur in the split or among the
    predictions. ``eval/f1`` is that of label 1, as GLUE defines it for two labels; 0 where it is never predicted.
    ``eval/largest_share`` is the share of the most frequent prediction: 1 where all texts get one answer.
    """
    from sklearn.metrics import f1_score

    return {
        "eval/accuracy": float((predicted == labels).mean()),
        "eval/f1_macro": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        "eval/largest_share": float(np.bincount(predicted).max() / len(predicted)),
        "eval/f1": float(f1_score(labels == 1, predicted == 1, zero_division=0.0)),
    }
