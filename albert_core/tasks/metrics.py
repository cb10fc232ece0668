"""Metrics of predicted labels."""

from __future__ import annotations

import numpy as np


def label_metrics(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes ``eval/accuracy``, ``eval/f1_macro``, ``eval/f1`` and ``eval/largest_share`` from label ids, int64 [N]
    each.

    F1 is scikit-learn's. Macro-F1 is the unweighted mean over the labels that occur in the split or in the predictions.
    ``eval/f1`` is the F1 of label 1, as GLUE defines it for two labels. It is 0 if that label is never predicted.
    ``eval/largest_share`` is the share of the most frequent prediction, which is 1 if all texts get the same answer.
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
