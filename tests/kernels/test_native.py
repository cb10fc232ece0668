"""The native CPU kernel, judged by the float64 oracle and held to the same bits in every batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.transformers_module import weights_from_module
from isotrain.kernels import cpu, reference
from isotrain.kernels.cpu import NativeEncoder
from isotrain.kernels.cpu.encoder import default_block_tokens
from isotrain.kernels.cpu.library import (
    EMULATED_INT8_ISA,
    EMULATED_ISA,
    ISAS,
    best_isa,
    multiplied,
    native,
    unit_rate,
    why_not,
)
from isotrain.kernels.packed import PackedBatch, PaddedBatch, PortableEncoder
from isotrain.kernels.packed.smoothing import eight_bit_options
from isotrain.kernels.weights import EncoderWeights
from support.awkward import unaligned, unaligned_batch
from transformers import AutoModel

Build = Callable[..., torch.nn.Module]
MakeBatch = Callable[..., PackedBatch]
TextLengths = Callable[[int], list[int]]

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


def isas() -> list[str]:
    """Every instruction set that runs here, and the AMX code over plain memory."""
    library = native().library
    names = (*ISAS["bfloat16"], EMULATED_ISA, *ISAS["int8"], EMULATED_INT8_ISA)
    return [name for name in names if library is not None and library.isotrain_cpu_has(name.encode())]


def rmse(values: torch.Tensor, exact: torch.Tensor) -> float:
    return (values.double() - exact).square().mean().sqrt().item()


def rounded(module: torch.nn.Module) -> EncoderWeights:
    return weights_from_module(module).to(dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path) -> torch.nn.Module:
    return AutoModel.from_pretrained(minilm_folder, add_pooling_layer=False, dtype=torch.float32).eval()


def assert_as_near_as_portable(isa: str, weights: EncoderWeights, batch: PackedBatch, **options: int) -> None:
    """At most 1.25 times the float64 distance of the portable path, which rounds at the same places."""
    exact = reference.encode(weights, batch).features
    made = eight_bit_options("int8", weights) if multiplied(isa) == "int8" else {}
    portable = rmse(PortableEncoder(weights, torch.bfloat16, torch.float32, **made)(batch), exact)
    features = NativeEncoder(weights, isa=isa, **options)(batch)
    assert features.dtype == torch.float32
    assert 0 < rmse(features, exact) <= 1.25 * portable


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
@pytest.mark.parametrize(
    ("architecture", "lengths"),
    [
        ("albert-base", [7, 1, 33, 2, 16, 7]),
        ("albert-tiny", [511, 1, 2, 512, 3, 64, 65, 129, 300, 2]),
        ("albert-grouped", [9, 1, 30, 9]),
        ("albert-one-layer", [9, 1, 30, 9]),
        ("bert-small", [511, 1, 2, 512, 3, 64, 200]),
    ],
)
def test_as_near_to_float64_as_the_portable_kernel(
    isa: str, architecture: str, lengths: list[int], pairs: bool, build: Build, make_batch: MakeBatch
) -> None:
    if isa in (EMULATED_ISA, EMULATED_INT8_ISA) and architecture == "albert-base":
        lengths = lengths[:3]
    assert_as_near_as_portable(isa, rounded(build(architecture)), make_batch(lengths, pairs=pairs))


@pytest.mark.parametrize("length", [*range(1, 36), 63, 64, 65, 95, 96, 97, 191, 192, 193, 512])
def test_every_length(length: int, build: Build, make_batch: MakeBatch) -> None:
    assert_as_near_as_portable(best_isa() or "", rounded(build("albert-tiny")), make_batch([length, 5]))


@pytest.mark.parametrize("isa", isas())
def test_what_an_earlier_batch_left_in_memory_changes_nothing(isa: str, build: Build, make_batch: MakeBatch) -> None:
    weights = rounded(build("albert-tiny"))
    encoder = NativeEncoder(weights, isa=isa)
    batch, lost = make_batch([7, 1, 33, 2, 16, 7]), make_batch([40, 90])
    expected = encoder(batch)
    nothing = torch.full((lost.num_tokens, weights.config.hidden_size), torch.nan)
    encoder.layer_states(lost, [nothing] * weights.config.num_layers)
    assert torch.equal(encoder(batch), expected)


def test_albert_large_and_the_longest_sequence(build: Build, make_batch: MakeBatch) -> None:
    assert_as_near_as_portable(best_isa() or "", rounded(build("albert-large")), make_batch([5, 1, 21, 2]))
    assert_as_near_as_portable(best_isa() or "", rounded(build("albert-base")), make_batch([512]))


def test_real_weights(minilm: torch.nn.Module, make_batch: MakeBatch) -> None:
    batch = make_batch([1, 2, 12, 40, 12, 7, 511], vocab_size=minilm.config.vocab_size, pairs=True)
    assert_as_near_as_portable(best_isa() or "", rounded(minilm), batch)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh"])
def test_activations(isa: str, name: str, build: Build, make_batch: MakeBatch) -> None:
    assert_as_near_as_portable(isa, rounded(build("albert-tiny", hidden_act=name)), make_batch([4, 30, 9, 60]))


@pytest.mark.parametrize("isa", isas())
def test_a_text_has_the_same_bits_in_every_batch(isa: str, build: Build, make_batch: MakeBatch) -> None:
    lengths = [7, 1, 33, 2, 16, 7, 100, 64, 31, 32, 5, 17, 129, 12]
    for architecture in ("albert-tiny", "bert-small"):
        weights, batch = rounded(build(architecture)), make_batch(lengths, pairs=True)
        encoder = NativeEncoder(weights, isa=isa, threads=1)
        together = encoder(batch)
        for threads, block_tokens in ((1, 7), (2, 96), (3, 33), (5, 1000)):
            other = NativeEncoder(weights, isa=isa, threads=threads, block_tokens=block_tokens)
            assert torch.equal(other(batch), together)
        flat_ids, types = batch.input_ids.numpy(), batch.token_type_ids
        assert types is not None
        offsets = batch.cu_seqlens.numpy()
        backwards = PackedBatch.from_flat(flat_ids, offsets, range(len(lengths))[::-1], types.numpy())
        assert torch.equal(encoder(backwards).flip(0), together)
        for index in range(len(lengths)):
            alone = PackedBatch.from_flat(flat_ids, offsets, [index], types.numpy())
            assert torch.equal(encoder(alone)[0], together[index])
        assert torch.equal(encoder(batch.to_padded()), together)
        assert torch.equal(encoder(batch), together), "an earlier call's scratch memory must not matter"


def test_thousands_of_sequences(build: Build, make_batch: MakeBatch, text_lengths: TextLengths) -> None:
    assert_as_near_as_portable(best_isa() or "", rounded(build("albert-tiny")), make_batch(text_lengths(2500)))


def test_non_contiguous_and_other_integer_tensors(build: Build, make_batch: MakeBatch) -> None:
    batch = make_batch([5, 9, 3])
    strided = torch.stack((batch.input_ids, batch.input_ids), dim=1)[:, 0]
    assert not strided.is_contiguous()
    encoder = NativeEncoder(rounded(build("albert-tiny")))
    expected = encoder(batch)
    assert torch.equal(encoder(replace(batch, input_ids=strided)), expected)
    assert torch.equal(encoder(replace(batch, input_ids=batch.input_ids.to(torch.int32))), expected)
    transposed = weights_from_module(build("albert-tiny"))
    layer = transposed.layers[0]
    turned = replace(layer, ffn_weight=layer.ffn_weight.T.contiguous().T)
    assert torch.equal(NativeEncoder(replace(transposed, layers=(turned,)))(batch), expected)


def test_unaligned_tensors_give_the_same_bits(build: Build, make_batch: MakeBatch) -> None:
    weights, batch = rounded(build("albert-tiny")), make_batch([5, 9, 3], pairs=True)
    moved = weights.mapped(lambda _, tensor: unaligned(tensor))
    for isa in isas():
        expected = NativeEncoder(weights, isa=isa)(batch)
        assert torch.equal(NativeEncoder(moved, isa=isa)(unaligned_batch(batch)), expected)


def test_float32_weights_are_rounded_like_any_others(build: Build, make_batch: MakeBatch) -> None:
    module, batch = build("albert-tiny"), make_batch([5, 9, 3])
    assert torch.equal(NativeEncoder(weights_from_module(module))(batch), NativeEncoder(rounded(module))(batch))


@pytest.mark.parametrize("columns", [slice(None), 3], ids=["sum", "square"])
def test_an_overflow_stays_in_its_sequence_and_is_no_number(
    columns: slice | int, build: Build, make_batch: MakeBatch
) -> None:
    """One large value has a finite mean: only its square overflows, in LayerNorm's variance."""
    weights = rounded(build("albert-tiny"))
    words = weights.word_embeddings.clone()
    words[7, columns] = 3e38
    weights = replace(weights, word_embeddings=words)
    batch = make_batch([5, 9, 3])
    ids = batch.input_ids.clone()
    ids[ids == 7] = 8
    spoiled = ids.clone()
    spoiled[6] = 7  # In the second sequence.
    for isa in isas():
        encoder = NativeEncoder(weights, isa=isa)
        clean, dirty = encoder(replace(batch, input_ids=ids)), encoder(replace(batch, input_ids=spoiled))
        assert torch.equal(dirty[[0, 2]], clean[[0, 2]])
        assert not torch.isfinite(dirty[1]).any()
        assert torch.equal(encoder(replace(batch, input_ids=ids)), clean)


# --- input that can't be used


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_ids": torch.tensor([1, 2, 1000])}, "token id 1000 is outside"),
        ({"input_ids": torch.tensor([1, -2, 3])}, "token id -2 is outside"),
        ({"position_ids": torch.tensor([0, 1, 512])}, "position 512 is outside"),
        ({"token_type_ids": torch.tensor([0, 1, 2])}, "token type 2 is outside"),
    ],
)
def test_values_out_of_range(change: dict[str, torch.Tensor], words: str, build: Build, make_batch: MakeBatch) -> None:
    encoder = NativeEncoder(rounded(build("albert-tiny")))
    with pytest.raises(UserError, match=words):
        encoder(replace(make_batch([3]), **change))


def test_a_sequence_longer_than_the_positions(build: Build, make_batch: MakeBatch) -> None:
    with pytest.raises(UserError, match="513 tokens is longer"):
        NativeEncoder(rounded(build("albert-tiny")))(make_batch([513]))


def test_sequences_without_tokens(build: Build, make_batch: MakeBatch) -> None:
    encoder, batch = NativeEncoder(rounded(build("albert-tiny"))), make_batch([3, 2])
    for lengths, message in (([5, 0], "sequence 1 is empty"), ([3, 3], "has 5 tokens, its lengths add up to 6")):
        # The batch itself refuses these; the native code must not read past a buffer even where somebody evaded that.
        wrong = replace(batch)
        object.__setattr__(wrong, "host_lengths", np.array(lengths))
        with pytest.raises(UserError, match=message):
            encoder(wrong)
    for row in ([0, 0, 0], [0, 1, 1], [1, 0, 1]):
        mask = torch.tensor([[1, 1, 0], row])
        with pytest.raises(UserError, match="attention_mask must hold"):
            encoder(PaddedBatch(torch.ones(2, 3, dtype=torch.int64), mask))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float, build: Build) -> None:
    weights = weights_from_module(build("albert-tiny"))
    broken = weights.layers[0].ffn_weight.clone()
    broken[3, 4] = value
    with pytest.raises(UserError, match=r"layers\.0\.ffn_weight holds 1 values that are NaN or infinite"):
        NativeEncoder(replace(weights, layers=(replace(weights.layers[0], ffn_weight=broken),)))


def test_shapes_it_does_not_have(build: Build) -> None:
    with pytest.raises(UserError, match=r"head size 8 \(it must be a multiple of 16.*use kernel portable"):
        NativeEncoder(rounded(build("albert-tiny", num_attention_heads=8)))
    with pytest.raises(UserError, match="activation 'mish'"):
        NativeEncoder(rounded(build("albert-tiny", hidden_act="mish")))
    with pytest.raises(UserError, match="this processor can't run sse2"):
        NativeEncoder(rounded(build("albert-tiny")), isa="sse2")


def test_its_version_names_the_build(build: Build) -> None:
    """Features are kept on disk under it: those of another compiler's or source's kernel are not this one's."""
    library = Path(cpu.__file__).with_name("_native.so")
    build_hash = hashlib.sha256(library.read_bytes()).hexdigest()[:8]
    assert NativeEncoder(rounded(build("albert-tiny"))).version == f"1-{best_isa()}-{build_hash}"


def test_it_links_neither_torch_nor_openmp() -> None:
    code = Path(cpu.__file__).with_name("_native.so").read_bytes()
    assert not [name for name in (b"libtorch", b"libc10", b"libgomp", b"libomp", b"libiomp") if name in code]


def test_block_tokens_follow_the_cache() -> None:
    assert 96 <= default_block_tokens("amx_bf16", 3072) <= 384
    assert default_block_tokens("amx_bf16", 10**6) == 96
    assert default_block_tokens("avx512_bf16", 64) == 384


def test_the_unit_rate_is_measured() -> None:
    for dtype in ISAS:
        assert unit_rate(best_isa(dtype) or "", 2**16, seconds=0.02) > 1e9
    assert unit_rate("sse2", 2**16, seconds=0.02) == 0.0
