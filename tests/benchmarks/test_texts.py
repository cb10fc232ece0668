"""The texts of a benchmark and their batches in each layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.tokens.order import BUCKETS
from isotrain.backends import LAYOUTS
from isotrain.benchmarks.harness.texts import (
    Texts,
    check_length,
    cost_classes,
    dataset_texts,
    embedded_texts,
    make_batches,
    representatives,
)
from isotrain.kernels.weights import EncoderConfig


@pytest.fixture(scope="module")
def texts() -> Texts:
    return embedded_texts(32, max_length=128, vocab_size=30000, num_labels=77, seed=5)


def test_the_embedded_texts_have_banking77s_lengths(texts: Texts) -> None:
    assert texts.lengths.mean() == pytest.approx(16.2, abs=1.0)
    assert np.median(texts.lengths) == pytest.approx(13, abs=1)
    assert (texts.ids[texts.offsets[:-1]] == 2).all()
    assert set(texts.labels) <= set(range(77))


def test_the_same_seed_gives_the_same_texts_and_another_seed_others(texts: Texts) -> None:
    again = embedded_texts(32, 128, 30000, 77, 5)
    other = embedded_texts(32, 128, 30000, 77, 6)
    assert again.fingerprint() == texts.fingerprint()
    assert other.fingerprint() != texts.fingerprint()


def test_texts_are_cut_to_the_maximum() -> None:
    assert embedded_texts(64, 10, 30000, 77, 5).lengths.max() == 10


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_every_text_once(texts: Texts, layout: str) -> None:
    batches = make_batches(texts, 8, layout, 128)
    assert len(batches) == 4
    assert sorted(np.concatenate([batch.rows for batch in batches])) == list(range(32))
    for batch in batches:
        packed = batch.inputs if layout == "packed" else batch.inputs.to_packed()
        for place, row in enumerate(batch.rows):
            start, stop = packed.cu_seqlens[place], packed.cu_seqlens[place + 1]
            expected = texts.ids[texts.offsets[row] : texts.offsets[row + 1]]
            assert torch.equal(packed.input_ids[start:stop], torch.from_numpy(expected))


def test_what_is_computed_is_the_tensor_the_kernel_gets(texts: Texts) -> None:
    for layout in LAYOUTS:
        for batch in make_batches(texts, 8, layout, 128):
            assert batch.computed.sum() == batch.inputs.input_ids.numel()
            assert batch.lengths.sum() == batch.inputs.num_tokens


def test_buckets_are_trainings_and_waste_less_than_padding(texts: Texts) -> None:
    batches = make_batches(texts, 8, "bucketed", 128)
    assert {batch.inputs.input_ids.shape[1] for batch in batches} <= set(BUCKETS)
    assert sum(batch.computed.sum() for batch in batches) < 0.3 * 32 * 128
    lengths = np.concatenate([batch.lengths for batch in batches])
    assert (np.diff(lengths) >= 0).all()


def test_training_takes_texts_as_they_come_in_every_layout(texts: Texts) -> None:
    for layout in LAYOUTS:
        rows = [batch.rows for batch in make_batches(texts, 8, layout, 128, sort=False)]
        assert np.concatenate(rows).tolist() == list(range(32))


def test_dynamic_batches_are_as_long_as_their_longest_text(texts: Texts) -> None:
    ours, baselines = (make_batches(texts, 4, "dynamic", 128, multiple=multiple) for multiple in (8, 1))
    for one, other in zip(ours, baselines, strict=True):
        longest = int(one.lengths.max())
        assert other.inputs.input_ids.shape[1] == longest
        assert one.inputs.input_ids.shape[1] in range(longest, longest + 8)
        assert one.inputs.input_ids.shape[1] % 8 == 0
    assert len({batch.inputs.input_ids.shape[1] for batch in ours}) > 1


def test_batches_of_one_shape_are_one_class_and_packed_ones_never(texts: Texts) -> None:
    assert cost_classes(make_batches(texts, 8, "padded", 128)) == [0, 0, 0, 0]
    assert cost_classes(make_batches(texts, 8, "packed", 128)) == [0, 1, 2, 3]
    assert 1 < len(set(cost_classes(make_batches(texts, 8, "bucketed", 128)))) <= 4


def test_representatives_keep_the_mean_of_a_skewed_population() -> None:
    lengths = np.random.default_rng(0).geometric(0.06, size=5000)
    for seed in range(5):
        chosen = lengths[representatives(lengths, 32, np.random.default_rng(seed))]
        assert chosen.mean() == pytest.approx(lengths.mean(), rel=0.06)


def test_more_texts_than_the_population_repeat_it() -> None:
    chosen = representatives(np.array([3, 1, 2]), 6, np.random.default_rng(0))
    assert sorted(chosen.tolist()) == [0, 0, 1, 1, 2, 2]


def test_a_length_beyond_the_models_positions_is_refused() -> None:
    config = EncoderConfig("albert", 100, 8, 16, 32, 2, 64, 2, "gelu_new", 1e-12, (0, 0))
    check_length(64, config, "m")
    with pytest.raises(UserError, match="exceeds the 64 positions of m; give at most 64"):
        check_length(65, config, "m")


def test_a_real_data_set_is_tokenised_as_for_training(tmp_path) -> None:
    for split in ("train", "test"):
        rows = "\n".join(f'"where is my card number {i}",{"lost" if i % 2 else "found"}' for i in range(20))
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{rows}\n", encoding="utf-8")
    texts = dataset_texts(str(tmp_path), "random:tiny", 8, max_length=32, vocab_size=30000, seed=0)
    assert len(texts.labels) == 8
    assert texts.num_labels == 2
    assert 3 <= texts.lengths.min() <= texts.lengths.max() <= 32
