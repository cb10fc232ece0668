"""Packed and padded batches against plain Python lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.kernels.packed import PackedBatch, PaddedBatch
from isotrain.kernels.weights import EncoderConfig

CONFIG = EncoderConfig("albert", 100, 8, 16, 32, 2, 10, 2, "gelu", 1e-12, (0, 0))
SEQUENCES = [[2, 11, 12, 3], [2, 3], [2, 21, 22, 23, 24, 3], [7]]
TYPES = [[0, 0, 1, 1], [0, 1], [0, 0, 0, 1, 1, 1], [0]]


def test_from_lists_lays_sequences_end_to_end() -> None:
    batch = PackedBatch.from_lists(SEQUENCES, TYPES)
    assert batch.input_ids.tolist() == [2, 11, 12, 3, 2, 3, 2, 21, 22, 23, 24, 3, 7]
    assert batch.token_type_ids is not None
    assert batch.token_type_ids.tolist() == [0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 0]
    assert batch.cu_seqlens.tolist() == [0, 4, 6, 12, 13]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4, 5, 0]
    assert batch.lengths.tolist() == batch.host_lengths.tolist() == [4, 2, 6, 1]
    assert (batch.num_sequences, batch.num_tokens, batch.max_seqlen) == (4, 13, 6)
    assert batch.input_ids.dtype == batch.position_ids.dtype == batch.token_type_ids.dtype == torch.int64
    assert batch.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_from_flat_gathers_any_sequences_in_any_order(dtype: type, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 500)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    stored = np.memmap(tmp_path / "ids", dtype=dtype, mode="w+", shape=(int(offsets[-1]),))
    stored[:] = rng.integers(0, 30000, offsets[-1])
    types = rng.integers(0, 2, offsets[-1]).astype(np.int8)
    indices = rng.integers(0, 500, 700)
    batch = PackedBatch.from_flat(stored, offsets, indices, types)
    rows = [slice(offsets[index], offsets[index + 1]) for index in indices]
    expected = PackedBatch.from_lists([stored[row].tolist() for row in rows], [types[row].tolist() for row in rows])
    for name in ("input_ids", "cu_seqlens", "position_ids", "token_type_ids"):
        ours, theirs = getattr(batch, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs), name


def test_the_batch_owns_its_tokens() -> None:
    ids = np.arange(6)
    batch = PackedBatch.from_flat(ids, np.array([0, 6]), [0])
    ids[:] = 0
    assert batch.input_ids.tolist() == [0, 1, 2, 3, 4, 5]


def test_sequences_in_order_of_length_know_their_places() -> None:
    order = sorted(range(len(SEQUENCES)), key=lambda index: len(SEQUENCES[index]))
    assert order != list(range(len(SEQUENCES)))
    for types in (TYPES, None):
        batch = PackedBatch.from_lists(SEQUENCES, types)
        ordered, places = batch.by_length()
        expected = PackedBatch.from_lists(
            [SEQUENCES[index] for index in order], types and [types[index] for index in order]
        )
        for name in ("input_ids", "cu_seqlens", "position_ids", "token_type_ids"):
            ours, theirs = getattr(ordered, name), getattr(expected, name)
            assert (ours is None and theirs is None) or torch.equal(ours, theirs), name
            assert ours is None or ours.dtype == theirs.dtype
        assert ordered.host_lengths.tolist() == expected.host_lengths.tolist()
        padded = torch.zeros(len(SEQUENCES) * batch.max_seqlen, dtype=torch.int64)
        padded[places] = ordered.input_ids
        assert torch.equal(padded.view(len(SEQUENCES), -1), batch.to_padded().input_ids)


def test_padding_and_back() -> None:
    batch = PackedBatch.from_lists(SEQUENCES, TYPES)
    padded = batch.to_padded(length=8, pad_id=99)
    assert padded.input_ids.tolist() == [row + [99] * (8 - len(row)) for row in SEQUENCES]
    assert padded.attention_mask.tolist() == [[1] * len(row) + [0] * (8 - len(row)) for row in SEQUENCES]
    assert padded.token_type_ids is not None
    assert padded.token_type_ids.tolist() == [row + [0] * (8 - len(row)) for row in TYPES]
    assert (padded.num_sequences, padded.num_tokens, padded.input_ids.numel()) == (4, 13, 32)
    assert batch.to_padded().input_ids.shape == (4, 6)
    again = PaddedBatch(padded.input_ids, padded.attention_mask, padded.token_type_ids)
    assert again.num_tokens == 13
    for back in (padded.to_packed(), again.to_packed()):
        for name in ("input_ids", "cu_seqlens", "position_ids", "token_type_ids"):
            assert torch.equal(getattr(back, name), getattr(batch, name)), name
        assert back.cu_seqlens.dtype == torch.int32
        assert back.host_lengths.tolist() == [4, 2, 6, 1]


def test_a_batch_made_of_tensors_reads_its_lengths_from_them() -> None:
    batch = PackedBatch(torch.arange(5), torch.tensor([0, 2, 5], dtype=torch.int32), torch.tensor([0, 1, 0, 1, 2]))
    assert batch.host_lengths.tolist() == [2, 3]


def test_to_a_device_keeps_the_lengths_on_the_host() -> None:
    batch = PackedBatch.from_lists(SEQUENCES)
    assert batch.to("cpu") is batch
    away = batch.to("meta")
    assert away.device.type == away.cu_seqlens.device.type == away.position_ids.device.type == "meta"
    assert away.host_lengths.tolist() == [4, 2, 6, 1]
    assert away.to_padded().to("meta").num_tokens == 13


@pytest.mark.parametrize(
    ("sequences", "types", "message"),
    [
        ([], None, "no sequence"),
        ([[1], []], None, "sequence 1 of the batch is empty"),
        ([[1, 2.5]], None, "must be integers"),
        ([["a"]], None, "must be integers"),
        ([[1, 2]], [[0]], "token_types must have"),
        ([[1, 2]], [[0, 1], [0]], "token_types must have"),
    ],
)
def test_lists_that_make_no_batch_are_refused(sequences: list, types: list | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PackedBatch.from_lists(sequences, types)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "no sequence"),
        ([2], "sequence 0 of the batch is empty"),
        ([0, -1], "index -1"),
        ([0, 3], "index 3 is outside"),
    ],
)
def test_indices_outside_the_store_never_wrap(indices: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PackedBatch.from_flat(np.arange(5), np.array([0, 2, 5, 5]), indices)


@pytest.mark.parametrize("bounds", [[0, 3, 4], [1, 3, 5], [0, 3, 3, 5], [0, 4, 3, 5]])
def test_bounds_that_do_not_cover_the_tokens_are_refused(bounds: list[int]) -> None:
    with pytest.raises(UserError):
        PackedBatch(torch.arange(5), torch.tensor(bounds, dtype=torch.int32), torch.arange(5))


def test_tensors_of_different_lengths_are_refused() -> None:
    with pytest.raises(UserError, match="of one length"):
        PackedBatch(torch.arange(5), torch.tensor([0, 5], dtype=torch.int32), torch.arange(4))
    with pytest.raises(UserError, match="shape of input_ids"):
        PaddedBatch(torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 4, dtype=torch.int64))
    with pytest.raises(UserError, match="both above 0"):
        PaddedBatch(torch.ones(0, 3, dtype=torch.int64), torch.ones(0, 3, dtype=torch.int64))


@pytest.mark.parametrize("lengths", [[3, 1], [3, 3], [2, 3], [6, -1], [5]])
def test_lengths_that_differ_from_the_bounds_are_refused(lengths: list[int]) -> None:
    batch = PackedBatch.from_lists([[2, 5, 3], [2, 3]])
    with pytest.raises(UserError, match="host_lengths of a packed batch differ from its cu_seqlens"):
        replace(batch, host_lengths=np.array(lengths))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_what_holds_no_integers_is_refused_by_name(dtype: torch.dtype) -> None:
    batch = PackedBatch.from_lists(SEQUENCES, TYPES)
    for name in ("input_ids", "cu_seqlens", "position_ids", "token_type_ids"):
        with pytest.raises(UserError, match=f"{name} of a batch must be int64 or int32, not {dtype}"):
            replace(batch, **{name: getattr(batch, name).to(dtype)})
    for name in ("input_ids", "token_type_ids"):
        with pytest.raises(UserError, match=f"{name} of a batch must be int64 or int32, not {dtype}"):
            replace(batch.to_padded(), **{name: getattr(batch.to_padded(), name).to(dtype)})
    with pytest.raises(UserError, match=r"cu_seqlens of a packed batch must be flat, not \(1, 5\)"):
        replace(batch, cu_seqlens=batch.cu_seqlens[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_a_mask_may_have_any_dtype(dtype: torch.dtype) -> None:
    padded = PackedBatch.from_lists(SEQUENCES).to_padded()
    packed = replace(padded, attention_mask=padded.attention_mask.to(dtype)).to_packed()
    assert packed.host_lengths.dtype == np.int64
    assert packed.host_lengths.tolist() == [4, 2, 6, 1]


def test_padding_shorter_than_a_sequence_is_refused() -> None:
    with pytest.raises(UserError, match="6 tokens can't be padded to 5"):
        PackedBatch.from_lists(SEQUENCES).to_padded(length=5)


@pytest.mark.parametrize(
    ("ids", "types", "message"),
    [
        ([1, 100], [0, 0], "token id 100 .* 0 to 99"),
        ([-1, 99], [0, 0], "token id -1 .* 0 to 99"),
        ([1, 99], [0, 2], "token type 2 .* 0 to 1"),
        (list(range(11)), [0] * 11, "11 tokens is longer than the encoder's 10 positions"),
    ],
)
def test_what_an_encoder_cannot_take_is_refused_in_both_layouts(ids: list, types: list, message: str) -> None:
    batch = PackedBatch.from_lists([[5], ids], [[0], types])
    with pytest.raises(UserError, match=message):
        batch.validate(CONFIG)
    with pytest.raises(UserError, match=message):
        batch.to_padded().validate(CONFIG)
    PackedBatch.from_lists([[5], [0, 99]], [[0], [0, 1]]).validate(CONFIG)


def test_a_position_outside_the_encoder_is_refused() -> None:
    batch = PackedBatch(torch.arange(2), torch.tensor([0, 2], dtype=torch.int32), torch.tensor([0, 10]))
    with pytest.raises(UserError, match="position 10"):
        batch.validate(CONFIG)


@pytest.mark.parametrize("row", [[0, 1, 1], [1, 0, 1], [0, 0, 0], [1, 2, 0]])
def test_a_mask_that_is_not_padding_on_the_right_is_refused(row: list[int]) -> None:
    batch = PaddedBatch(torch.ones(2, 3, dtype=torch.int64), torch.tensor([[1, 1, 0], row]))
    with pytest.raises(UserError, match="attention_mask must hold"):
        batch.validate(CONFIG)
    with pytest.raises(UserError, match="attention_mask must hold"):
        batch.to_packed()
