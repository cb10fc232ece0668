"""The portable packed encoder, judged by transformers and by the float64 oracle."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.transformers_module import weights_from_module
from isotrain.kernels import reference
from isotrain.kernels.packed import PackedBatch, PaddedBatch, PortableEncoder
from isotrain.kernels.packed.portable import ACTIVATIONS, HOST_CHUNK_TOKENS, OTHER_ACTIVATIONS
from isotrain.kernels.packed.prepacked import prepacked_linear
from support.awkward import NAN_PLACES, unaligned, unaligned_batch, with_nan
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

Build = Callable[..., torch.nn.Module]
MakeBatch = Callable[..., PackedBatch]
Judge = Callable[[torch.nn.Module, PackedBatch], torch.Tensor]
TextLengths = Callable[[int], list[int]]


def rmse(values: torch.Tensor, exact: torch.Tensor) -> float:
    return (values.double() - exact).square().mean().sqrt().item()


def assert_near(values: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(values, expected, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path) -> torch.nn.Module:
    return AutoModel.from_pretrained(minilm_folder, add_pooling_layer=False, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tiny(build: Build) -> PortableEncoder:
    return PortableEncoder(weights_from_module(build("albert-tiny")))


# --- equal to transformers


@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
@pytest.mark.parametrize(
    ("architecture", "lengths"),
    [
        ("albert-base", [7, 1, 33, 2, 16, 7]),
        ("albert-large", [5, 1, 21, 2]),
        ("albert-tiny", [511, 1, 2, 512, 3, 64, 65, 129, 300, 2]),
        ("albert-grouped", [9, 1, 30, 9]),
        ("albert-one-layer", [9, 1, 30, 9]),
        ("bert-small", [511, 1, 2, 512, 3, 64, 200]),
    ],
)
def test_features_equal_transformers(
    architecture: str, lengths: list[int], pairs: bool, build: Build, make_batch: MakeBatch, judge: Judge
) -> None:
    module = build(architecture)
    encoder = PortableEncoder(weights_from_module(module))
    batch = make_batch(lengths, pairs=pairs)
    expected = judge(module, batch)
    assert expected.std(dim=0).mean() > 0.1, "features that hardly depend on the text would hide errors"
    for layout in (batch, batch.to_padded()):
        features = encoder(layout)
        assert features.dtype == torch.float32
        # Both round: after 24 layers, values near 2 differ by up to 1.0e-5 on some processors.
        assert_near(features, expected, atol=2e-5 if architecture == "albert-large" else 1e-5)


@pytest.mark.parametrize("length", [1, 2, 130])
def test_a_batch_of_one(length: int, build: Build, make_batch: MakeBatch, judge: Judge, tiny: PortableEncoder) -> None:
    batch = make_batch([length])
    assert_near(tiny(batch), judge(build("albert-tiny"), batch))


def test_the_longest_sequence_through_albert_base(build: Build, make_batch: MakeBatch, judge: Judge) -> None:
    batch = make_batch([512])
    assert_near(PortableEncoder(weights_from_module(build("albert-base")))(batch), judge(build("albert-base"), batch))


def test_thousands_of_sequences(
    build: Build, make_batch: MakeBatch, judge: Judge, text_lengths: TextLengths, tiny: PortableEncoder
) -> None:
    batch = make_batch(text_lengths(2500))
    assert_near(tiny(batch), judge(build("albert-tiny"), batch))


def test_real_weights(minilm: torch.nn.Module, make_batch: MakeBatch, judge: Judge) -> None:
    batch = make_batch([1, 2, 12, 40, 12, 7, 511], vocab_size=minilm.config.vocab_size, pairs=True)
    encoder = PortableEncoder(weights_from_module(minilm))
    expected = judge(minilm, batch)
    assert_near(encoder(batch), expected)
    assert_near(encoder(batch.to_padded()), expected)


@pytest.mark.parametrize("name", [*ACTIVATIONS, *OTHER_ACTIVATIONS])
def test_activations_equal_transformers(name: str, build: Build, make_batch: MakeBatch, judge: Judge) -> None:
    module = build("albert-tiny", hidden_act=name)
    batch = make_batch([4, 30, 9])
    assert_near(PortableEncoder(weights_from_module(module))(batch), judge(module, batch))


# --- as near to the exact result as transformers


@pytest.mark.parametrize("architecture", ["albert-base", "albert-tiny", "bert-small", "minilm"])
def test_float32_errors_are_no_larger_than_transformers(
    architecture: str, build: Build, make_batch: MakeBatch, judge: Judge, request: pytest.FixtureRequest
) -> None:
    module = request.getfixturevalue("minilm") if architecture == "minilm" else build(architecture)
    weights = weights_from_module(module)
    batch = make_batch([5, 17, 9, 1, 12, 12], pairs=True)
    exact = reference.encode(weights, batch).features
    theirs = rmse(judge(module, batch), exact)
    encoder = PortableEncoder(weights)
    assert 0 < rmse(encoder(batch), exact) <= 1.5 * theirs
    assert 0 < rmse(encoder(batch.to_padded()), exact) <= 1.5 * theirs


@pytest.mark.parametrize("architecture", ["albert-tiny", "bert-small", "minilm"])
def test_bfloat16_errors_are_within_three_times_transformers(
    architecture: str, build: Build, make_batch: MakeBatch, judge: Judge, request: pytest.FixtureRequest
) -> None:
    module = request.getfixturevalue("minilm") if architecture == "minilm" else build(architecture)
    weights = weights_from_module(module)
    batch = make_batch([5, 17, 9, 1, 12, 12], pairs=True)
    exact = reference.encode(weights, batch).features
    theirs = rmse(judge(deepcopy(module).bfloat16(), batch), exact)
    rounded = weights.to(dtype=torch.bfloat16)
    for layout in (batch, batch.to_padded()):
        features = PortableEncoder(rounded, torch.bfloat16, torch.float32)(layout)
        assert features.dtype == torch.float32
        assert 1e-4 < rmse(features, exact) <= 3 * theirs
    # bfloat16 weights computed in float32: only the weights' rounding is left.
    assert rmse(PortableEncoder(rounded)(batch), reference.encode(rounded, batch).features) < 1e-5


def test_bfloat16_normalises_and_adds_residuals_in_float32(build: Build, make_batch: MakeBatch) -> None:
    states = PortableEncoder(weights_from_module(build("albert-tiny")), torch.bfloat16).layer_states(make_batch([9]))
    assert all(state.dtype == torch.float32 for state in states)
    assert all((state != state.bfloat16().float()).any() for state in states[1:])


def test_float16_is_nearer_than_bfloat16(build: Build, make_batch: MakeBatch) -> None:
    weights = weights_from_module(build("albert-tiny"))
    batch = make_batch([5, 17, 1])
    exact = reference.encode(weights, batch).features
    half = rmse(PortableEncoder(weights, torch.float16)(batch), exact)
    assert 1e-5 < half < rmse(PortableEncoder(weights, torch.bfloat16)(batch), exact)


def test_float64_equals_the_oracle(build: Build, make_batch: MakeBatch) -> None:
    weights = weights_from_module(build("albert-grouped"))
    batch = make_batch([5, 17, 1], pairs=True)
    states = PortableEncoder(weights, torch.float64, torch.float64).layer_states(batch)
    exact = reference.encode(weights, batch, keep_layer_states=True).layer_states
    assert len(states) == weights.config.num_layers + 1 == 9
    for index, state in enumerate(states):
        assert_near(state, torch.cat([sequence[index] for sequence in exact]), atol=1e-11)


def test_every_layer_of_every_token_is_near_the_oracle(build: Build, make_batch: MakeBatch) -> None:
    weights = weights_from_module(build("albert-base"))
    batch = make_batch([6, 3, 11, 3])
    encoder = PortableEncoder(weights)
    exact = reference.encode(weights, batch, keep_layer_states=True).layer_states
    packed, padded = encoder.layer_states(batch), encoder.layer_states(batch.to_padded())
    real = batch.to_padded().attention_mask.bool()
    for index in range(13):
        expected = torch.cat([sequence[index] for sequence in exact]).float()
        assert_near(packed[index], expected)
        assert padded[index].shape == (4, 11, 768)
        assert_near(padded[index][real], expected)
    firsts = batch.cu_seqlens[:-1].long()
    assert_near(encoder(batch), packed[-1][firsts])


@pytest.mark.parametrize("architecture", ["albert-grouped", "bert-small"])
def test_these_comparisons_would_catch_a_wrong_tensor(
    architecture: str, build: Build, make_batch: MakeBatch, judge: Judge
) -> None:
    module = build(architecture)
    weights = weights_from_module(module)
    batch = make_batch([5, 17, 1], pairs=True)
    expected = judge(module, batch)
    for name, _ in weights.named_tensors():
        # A constant added to every key shifts all scores of a query alike, which softmax takes out again.
        if name.endswith("key_bias"):
            continue
        changed = weights.mapped(lambda own, tensor, name=name: tensor * 1.05 if own == name else tensor)
        wrong = PortableEncoder(changed)(batch)
        assert (wrong - expected).abs().max() > 1e-4, name


# --- the batch around a sequence doesn't matter


def test_order_and_company_change_nothing_but_rounding(
    make_batch: MakeBatch, text_lengths: TextLengths, tiny: PortableEncoder
) -> None:
    batch = make_batch(text_lengths(300), pairs=True)
    features = tiny(batch)
    ids, types = (values.numpy() for values in (batch.input_ids, batch.token_type_ids))
    offsets = batch.cu_seqlens.numpy()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert_near(tiny(PackedBatch.from_flat(ids, offsets, order.numpy(), types)), features[order])
    for index in (0, 1, 150, 299):
        assert_near(tiny(PackedBatch.from_flat(ids, offsets, [index], types))[0], features[index])


@pytest.mark.parametrize("chunk_tokens", [1, 7, 100, 10**6])
def test_chunks_change_nothing_but_rounding(
    chunk_tokens: int, build: Build, make_batch: MakeBatch, text_lengths: TextLengths, tiny: PortableEncoder
) -> None:
    chunked = PortableEncoder(weights_from_module(build("albert-tiny")), chunk_tokens=chunk_tokens)
    batch = make_batch(text_lengths(60), pairs=True)
    expected = tiny(batch)
    assert_near(chunked(batch), expected)
    assert_near(chunked(batch.to_padded()), expected)


def test_what_stands_at_padded_places_changes_nothing(make_batch: MakeBatch, tiny: PortableEncoder) -> None:
    batch = make_batch([3, 9, 1], pairs=True)
    zeros, others = batch.to_padded(length=20), batch.to_padded(length=20, pad_id=5)
    types = torch.where(others.attention_mask.bool(), others.token_type_ids, 1)
    assert torch.equal(tiny(zeros), tiny(replace(others, token_type_ids=types)))
    assert_near(tiny(zeros), tiny(batch))


def test_tensors_that_are_not_contiguous_give_the_right_result(
    build: Build, make_batch: MakeBatch, tiny: PortableEncoder
) -> None:
    weights = weights_from_module(build("albert-tiny"))
    layer = weights.layers[0]
    strided = replace(layer, ffn_weight=layer.ffn_weight.T.contiguous().T, ffn_bias=layer.ffn_bias.repeat(2, 1).T[:, 0])
    assert not strided.ffn_weight.is_contiguous()
    batch = make_batch([4, 2, 9])
    every_second = batch.input_ids.repeat_interleave(2)[::2]
    assert not every_second.is_contiguous()
    features = PortableEncoder(replace(weights, layers=(strided,)))(replace(batch, input_ids=every_second))
    assert_near(features, tiny(batch))


def test_unaligned_tensors_give_the_same_bits(build: Build, make_batch: MakeBatch) -> None:
    weights = weights_from_module(build("albert-tiny"))
    batch = make_batch([4, 2, 9], pairs=True)
    moved = PortableEncoder(weights.mapped(lambda _, tensor: unaligned(tensor)))
    assert torch.equal(moved(unaligned_batch(batch)), PortableEncoder(weights)(batch))


# Not in the keys: torch's attention gives 0 for a head whose scores are NaN, so the backend refuses such weights.
@pytest.mark.parametrize("place", [place for place in NAN_PLACES if place != "key_weight"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_nan_among_the_weights_gives_no_number(place: str, activation: str, build: Build) -> None:
    weights = weights_from_module(build("albert-tiny", hidden_act=activation))
    batch = PackedBatch.from_lists([[2, 7, 3], [2, 5, 6, 7, 3]])
    assert torch.isfinite(PortableEncoder(weights)(batch)).all()
    features = PortableEncoder(with_nan(weights, place))(batch)
    assert torch.isnan(features).any(dim=1).all()


def test_an_overflow_stays_in_its_sequence_and_is_no_number(build: Build) -> None:
    weights = weights_from_module(build("albert-tiny")).to(dtype=torch.bfloat16)
    words = weights.word_embeddings.clone()
    words[7] = 3e38
    weights = replace(weights, word_embeddings=words)
    features = PortableEncoder(weights, torch.bfloat16)(PackedBatch.from_lists([[2, 5, 3], [2, 7, 3], [2, 3]]))
    assert torch.isfinite(features[[0, 2]]).all()
    assert not torch.isfinite(features[1]).any()


# --- no wasted work, bounded memory


def test_only_real_tokens_are_multiplied_and_only_cls_in_the_last_layer(build: Build, make_batch: MakeBatch) -> None:
    weights = weights_from_module(build("albert-tiny"))
    lengths = [3, 40, 7, 40, 1]
    tokens, sequences, h, f, e = sum(lengths), len(lengths), 64, 128, 32
    whole = 4 * h * h + 2 * h * f
    last = tokens * 2 * h * h + sequences * (2 * h * h + 2 * h * f)
    expected = 2 * (tokens * e * h + 2 * tokens * whole + last)
    encoder = PortableEncoder(weights)
    with FlopCounterMode(display=False) as counter:
        encoder(make_batch(lengths))
    assert counter.get_flop_counts()["Global"][torch.ops.aten.addmm] == expected


class Watch(TorchDispatchMode):
    """Remembers the most elements that any operator's result had, and how often attention was called."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.attentions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.attentions += "scaled_dot_product" in str(func)
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_a_huge_batch_needs_no_more_memory_than_its_chunks(
    make_batch: MakeBatch, text_lengths: TextLengths, tiny: PortableEncoder
) -> None:
    batch = make_batch(text_lengths(3000))
    assert batch.num_tokens > 40 * HOST_CHUNK_TOKENS
    for layout in (batch, batch.to_padded()):
        with Watch() as watch:
            tiny(layout)
        # The batch itself, or a chunk's widest activation (Q, K and V of hidden size 64).
        assert watch.elements <= max(layout.input_ids.numel(), HOST_CHUNK_TOKENS * 3 * 64)


def test_sequences_of_equal_length_share_one_attention_call(make_batch: MakeBatch, tiny: PortableEncoder) -> None:
    with Watch() as watch:
        tiny(make_batch([5, 9, 5, 7, 9, 5, 7]))
    assert watch.attentions == 3 * tiny.config.num_layers


# --- how it fits in


def test_features_can_be_trained_on(make_batch: MakeBatch, build: Build) -> None:
    weights = weights_from_module(build("albert-tiny"))
    weights = replace(weights, word_embeddings=weights.word_embeddings.clone().requires_grad_())
    features = PortableEncoder(weights)(make_batch([4, 2]))
    assert not features.requires_grad
    assert not features.is_inference()
    head = torch.nn.Linear(64, 3)
    head(features).sum().backward()
    assert head.weight.grad is not None


def test_autocast_around_it_does_not_lower_its_precision(make_batch: MakeBatch, tiny: PortableEncoder) -> None:
    batch = make_batch([4, 2])
    features, states = tiny(batch), tiny.layer_states(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tiny(batch), features)
        assert torch.equal(tiny.layer_states(batch)[-1], states[-1])


def test_no_value_is_read_back_from_the_device(build: Build, make_batch: MakeBatch) -> None:
    """The meta device has shapes but no values: whatever depended on a value would raise."""
    encoder = PortableEncoder(weights_from_module(build("albert-tiny")).to("meta"))
    batch = make_batch([4, 2, 4], pairs=True)
    for layout in (batch, batch.to_padded(length=8), replace(batch.to_padded(), host_lengths=None)):
        features = encoder(layout.to("meta"))
        assert features.shape == (3, 64)
        assert features.device.type == "meta"


def test_what_it_cannot_run_is_refused(build: Build, make_batch: MakeBatch, tiny: PortableEncoder) -> None:
    weights = weights_from_module(build("albert-tiny"))
    with pytest.raises(UserError, match="activation 'laplace' is not supported; the portable kernel has gelu"):
        PortableEncoder(replace(weights, config=replace(weights.config, activation="laplace")))
    with pytest.raises(UserError, match="floating point"):
        PortableEncoder(weights, torch.int8)
    with pytest.raises(UserError, match="accumulate dtype must hold"):
        PortableEncoder(weights, torch.float64, torch.float32)
    with pytest.raises(UserError, match="chunk_tokens is 0"):
        PortableEncoder(weights, chunk_tokens=0)
    for call in (tiny, tiny.layer_states):
        with pytest.raises(UserError, match="513 tokens is longer than the encoder's 512 positions"):
            call(make_batch([2, 513]))
        with pytest.raises(UserError, match="token id 1000 is outside"):
            call(PackedBatch.from_lists([[1, 1000]]))
        with pytest.raises(UserError, match="attention_mask must hold"):
            call(PaddedBatch(torch.ones(1, 2, dtype=torch.int64), torch.tensor([[0, 1]])))


# --- weights laid out beforehand


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_prepacked_weights_give_the_same_features(dtype: torch.dtype, build: Build, make_batch: MakeBatch) -> None:
    weights = weights_from_module(build("albert-tiny")).to(dtype=dtype)
    batch = make_batch([5, 17, 1, 64, 9], pairs=True)
    plain = PortableEncoder(weights, dtype, torch.float32)(batch)
    packed = PortableEncoder(weights, dtype, torch.float32, make_linear=prepacked_linear)(batch)
    exact = reference.encode(weights, batch).features
    assert rmse(packed, exact) <= 1.1 * rmse(plain, exact)


def test_prepacking_falls_back_where_torch_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias, x = torch.randn(8, 4).bfloat16(), torch.randn(8).bfloat16(), torch.randn(3, 4).bfloat16()
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert torch.equal(prepacked_linear(weight, bias)(x), torch.nn.functional.linear(x, weight, bias))
