"""Metrics of predicted labels and numbers."""

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


def label_set_metrics(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes ``eval/f1_micro``, ``eval/f1_macro`` and ``eval/accuracy`` from sets of labels, bool [N, C] each.

    They are scikit-learn's. The F1 of a label that no row has and none is given is 0, and counts in the macro-F1.
    Subset accuracy is the share of rows with exactly the right labels.
    """
    right = (predicted & labels).sum(axis=0)
    occurrences = predicted.sum(axis=0) + labels.sum(axis=0)
    return {
        "eval/f1_micro": float(2 * right.sum() / max(1, occurrences.sum())),
        "eval/f1_macro": float((2 * right / np.maximum(1, occurrences)).mean()),
        "eval/accuracy": float((predicted == labels).all(axis=1).mean()),
    }


def number_metrics(predicted: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Computes ``eval/pearsonr``, ``eval/spearmanr`` and ``eval/rmse`` from numbers, float64 [N, k] each.

    The correlations are Pearson's and Spearman's, each the mean over the k columns. A column in which all predictions
    or all targets are equal has none, and counts as 0. The root mean square error is that of all numbers.
    """
    pairs = list(zip(predicted.T, targets.T.astype(np.float64), strict=True))
    varied = [(given, wanted) for given, wanted in pairs if np.ptp(given) > 0 and np.ptp(wanted) > 0]
    return {
        "eval/pearsonr": sum(_correlation(given, wanted) for given, wanted in varied) / len(pairs),
        "eval/spearmanr": sum(_correlation(_ranks(given), _ranks(wanted)) for given, wanted in varied) / len(pairs),
        "eval/rmse": float(np.sqrt(np.square(predicted - targets).mean())),
    }


def _correlation(given: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.corrcoef(given, wanted)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]
