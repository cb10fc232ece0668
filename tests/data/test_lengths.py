"""Banking77's lengths, embedded and recounted."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from isotrain import UserError
from isotrain.albert_core.tokens.lengths import BANKING77_LENGTHS, banking77_lengths
from tokenizers import Tokenizer


def test_the_histogram_has_the_published_shape() -> None:
    lengths = np.repeat(*np.array(BANKING77_LENGTHS).T)
    assert len(lengths) == 10_003
    assert round(lengths.mean(), 1) == 16.2
    assert [round(float(np.percentile(lengths, q))) for q in (50, 90, 95, 99)] == [13, 28, 37, 53]
    assert lengths.max() == 98


@pytest.mark.shared
def test_the_histogram_is_that_of_the_data(shared_data: Path) -> None:
    tokenizer = Tokenizer.from_file(str(shared_data / "tokenizer" / "tokenizer.json"))
    with (shared_data / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    counted = Counter(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))
    assert dict(BANKING77_LENGTHS) == counted
    assert sum(length * texts for length, texts in BANKING77_LENGTHS) == 162_289


def test_the_full_sample_is_the_histogram() -> None:
    sample = banking77_lengths(10_003, seed=4)
    assert sample.dtype == np.int64
    assert Counter(sample.tolist()) == dict(BANKING77_LENGTHS)


@pytest.mark.parametrize("n", [64, 1000, 20_006])
def test_samples_have_the_shape_and_depend_on_n_and_seed_alone(n: int) -> None:
    sample = banking77_lengths(n, seed=1)
    assert len(sample) == n
    assert abs(sample.mean() - 16.224) < 0.2
    assert np.array_equal(sample, banking77_lengths(n, seed=1))
    other = banking77_lengths(n, seed=2)
    assert not np.array_equal(sample, other)
    assert np.array_equal(np.sort(sample), np.sort(other))


def test_small_and_impossible_samples() -> None:
    assert banking77_lengths(1).tolist() == [13]
    with pytest.raises(UserError, match="give 1 or more"):
        banking77_lengths(0)
