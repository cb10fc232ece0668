"""Figures of predicted labels and numbers, held to scikit-learn's and scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from isotrain.albert_core.tasks.metrics import label_metrics, label_set_metrics, number_metrics
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error

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


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("seed", range(12))
def test_figures_of_sets_of_labels_are_scikit_learns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = int(generator.integers(1, 60)), (2, 3, 5, 28)[seed % 4]
    labels, predicted = (generator.random(shape) < generator.random() ** 2 for _ in range(2))
    predicted = np.where(generator.random(shape) < 0.7, labels, predicted)
    assert label_set_metrics(predicted, labels) == {
        "eval/f1_micro": pytest.approx(f1_score(labels, predicted, average="micro"), rel=1e-15),
        "eval/f1_macro": pytest.approx(f1_score(labels, predicted, average="macro"), rel=1e-15),
        "eval/accuracy": accuracy_score(labels, predicted),
    }


@pytest.mark.parametrize("columns", [1, 3])
def test_figures_of_numbers_are_scipys(columns: int) -> None:
    generator = np.random.default_rng(columns)
    targets = generator.integers(0, 6, (40, columns)).astype(np.float32)
    predicted = targets + generator.normal(size=targets.shape)
    found = number_metrics(predicted, targets)
    by_column = list(zip(predicted.T, targets.T, strict=True))
    assert found["eval/pearsonr"] == pytest.approx(np.mean([pearsonr(*pair).statistic for pair in by_column]))
    assert found["eval/spearmanr"] == pytest.approx(np.mean([spearmanr(*pair).statistic for pair in by_column]))
    assert found["eval/rmse"] == pytest.approx(mean_squared_error(targets, predicted) ** 0.5)


@pytest.mark.filterwarnings("error")
def test_equal_predictions_have_no_correlation() -> None:
    assert number_metrics(np.full((3, 1), 2.0), np.array([[1.0], [2.0], [3.0]], np.float32)) == {
        "eval/pearsonr": 0.0,
        "eval/spearmanr": 0.0,
        "eval/rmse": pytest.approx((2 / 3) ** 0.5),
    }
    assert number_metrics(np.ones((1, 2)), np.zeros((1, 2), np.float32))["eval/pearsonr"] == 0.0
