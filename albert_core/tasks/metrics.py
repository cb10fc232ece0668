"""Figures of predicted labels."""

from __future__ import annotations

import numpy as np


def label_metrics(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """``eval/accuracy``, ``eval/f1_macro``, ``eval/f1`` and ``eval/largest_share`` of label ids, int64 [N] each.

    F1 is scikit-learn's. Macro-F1 is the unweighted mean over the labels that occur in the split or among the
    predictions. ``eval/f1`` is that of label 1, as GLUE defines it for two labels; 0 where it is never predicted.
    ``eval/largest_share`` is the share of the most frequent prediction: 1 where all texts get one answer.
    """
    size = max(2, int(predicted.max()) + 1, int(labels.max()) + 1)
    counts = np.bincount(predicted, minlength=size)
    occurrences = counts + np.bincount(labels, minlength=size)
    correct = np.bincount(labels[predicted == labels], minlength=size)
    f1 = 2 * correct / np.maximum(occurrences, 1)
    return {
        "eval/accuracy": float((predicted == labels).mean()),
        "eval/f1_macro": float(f1[occurrences > 0].mean()),
        "eval/largest_share": float(counts.max() / len(predicted)),
        "eval/f1": float(f1[1]),
    }
