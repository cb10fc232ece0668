"""Figures of predicted labels, held to scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from isotrain.albert_core.tasks.metrics import label_metrics
from sklearn.metrics import accuracy_score, f1_score

pytestmark = pytest.mark.core


@pytest.mark.parametrize("seed", range(20))
def test_every_figure_has_the_bits_of_scikit_learns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    classes, rows = (1, 2, 3, 77)[seed % 4], int(generator.integers(1, 300))
    labels = generator.integers(0, classes, rows)
    correct = generator.random(rows) < generator.random()
    predicted = np.where(correct, labels, generator.integers(0, classes + seed % 3, rows))
    assert label_metrics(predicted, labels) == {
        "eval/accuracy": accuracy_score(labels, predicted),
        "eval/f1_macro": f1_score(labels, predicted, average="macro", zero_division=0.0),
        "eval/largest_share": np.bincount(predicted).max() / rows,
        "eval/f1": f1_score(labels == 1, predicted == 1, zero_division=0.0),
    }
