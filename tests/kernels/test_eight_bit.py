"""8-bit products of frozen encoders: how rows are rounded, what is summed exactly, what engines have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.features.source import frozen_encoder
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.albert_core.model.transformers_module import weights_from_module
from isotrain.backends import EIGHT_BIT, get_backend
from isotrain.kernels import reference
from isotrain.kernels.cpu import NativeEncoder
from isotrain.kernels.cpu.library import EMULATED_INT8_ISA, ISAS, native, why_not
from isotrain.kernels.ideal import IdealEncoder
from isotrain.kernels.packed import PackedBatch
from isotrain.kernels.packed.eight_bit import FORMATS, WIDEST, eight_bit_linear, rounded_rows, uneven
from isotrain.kernels.packed.portable import PortableEncoder
from isotrain.kernels.packed.smoothing import smoothing_of
from isotrain.kernels.weights import EncoderWeights
from support.hosted_cuda import HostedCuda
from transformers import AutoModel

Build = Callable[..., torch.nn.Module]
MakeBatch = Callable[..., PackedBatch]

LENGTHS = [7, 1, 33, 2, 16, 100, 64, 31]
INT8 = FORMATS["int8"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- rounding


def test_a_row_is_rounded_to_steps_of_its_largest_value() -> None:
    x = random(5, 64) * torch.tensor([[1e-12], [1e-3], [1.0], [50.0], [1e12]])
    values, scale = rounded_rows(x, INT8)
    assert values.dtype == torch.int8
    assert values.abs().amax(1).tolist() == [127] * 5
    assert torch.equal(scale, x.abs().amax(1, keepdim=True) / 127.0)
    assert ((values * scale - x).abs() <= 0.5001 * scale).all()


def test_float8_keeps_small_values_apart() -> None:
    x = torch.tensor([[448.0, 1.0, -0.5, 0.0]])
    values, scale = rounded_rows(x, FORMATS["float8_e4m3"])
    assert torch.equal(values.float() * scale, x)


def test_rows_of_zeros_and_of_no_numbers() -> None:
    x = torch.stack((torch.zeros(4), torch.full((4,), 1e-40), *(random(4) for _ in range(3))))
    x[2, 1], x[3, 2], x[4, 3] = float("nan"), float("inf"), -float("inf")
    values, scale = rounded_rows(x, INT8)
    assert not values[:2].any()
    assert scale.isnan().flatten().tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("width", [64, 4096])
def test_sums_of_bytes_are_exact(width: int) -> None:
    """The largest sum of 4,096 products is beyond what float32 counts in ones."""
    config = load_encoder("random:tiny").weights.config
    x, weight, bias = random(3, width), random(8, width, seed=1), random(8, seed=2)
    weight[0], x[0] = 1.0, 1.0
    fast, exact = (eight_bit_linear("int8", config, exact=exact)(weight, bias) for exact in (False, True))
    assert torch.allclose(fast(x).double(), exact(x), rtol=1e-6)
    assert fast(x.bfloat16()).dtype == torch.bfloat16


def test_float8_products_are_those_of_float64(build: Build) -> None:
    config = load_encoder("random:tiny").weights.config
    x, weight, bias = random(20, 64).bfloat16(), random(32, 64, seed=1), random(32, seed=2)
    fast, exact = (eight_bit_linear("float8_e4m3", config, exact=exact)(weight, bias) for exact in (False, True))
    expected = exact(x.float())
    assert (fast(x).double() - expected).abs().max() <= 2**-8 * expected.abs().max()


def test_widths_that_cannot_be_summed_or_multiplied() -> None:
    config = load_encoder("random:tiny").weights.config
    with pytest.raises(UserError, match=rf"intermediate_size {WIDEST + 64} .at most {WIDEST}.; set dtype: bfloat16"):
        eight_bit_linear("int8", replace(config, intermediate_size=WIDEST + 64))
    assert uneven(config) == ""
    assert "intermediate_size 72 (it must be a multiple of 16)" in uneven(replace(config, intermediate_size=72))


# --- smoothing


LARGE = [3, 17]


def with_large_channels(weights: EncoderWeights) -> EncoderWeights:
    """The channels LARGE are 40 times as large after every LayerNorm, as a few are in pretrained encoders."""

    def enlarged(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not name.endswith("norm_weight"):
            return tensor
        tensor = tensor.clone()
        tensor[LARGE] *= 40.0
        return tensor

    return weights.mapped(enlarged)


def portable_int8(weights: EncoderWeights, *, smooth: bool) -> PortableEncoder:
    return PortableEncoder(
        weights.to(dtype=torch.bfloat16),
        torch.bfloat16,
        torch.float32,
        make_linear=eight_bit_linear("int8", weights.config),
        smoothing=smoothing_of(weights) if smooth else None,
    )


@pytest.mark.parametrize("architecture", ["albert-grouped", "bert-small"])
def test_smoothing_divides_and_multiplies_by_the_same_powers_of_two(
    architecture: str, build: Build, make_batch: MakeBatch
) -> None:
    weights, batch = with_large_channels(weights_from_module(build(architecture))), make_batch(LENGTHS, pairs=True)
    wide = torch.float64
    smoothing = smoothing_of(weights)
    plain, smoothed = (PortableEncoder(weights.to(dtype=wide), wide, wide, smoothing=one) for one in (None, smoothing))
    assert torch.equal(plain(batch), smoothed(batch))
    assert plain.version != smoothed.version, "features are cached by it"
    rounded = smoothing_of(weights.to(dtype=torch.bfloat16))
    for one, other in zip(smoothing, rounded, strict=True):
        for factors, same in ((one.qkv, other.qkv), (one.ffn, other.ffn)):
            assert torch.equal(factors, same)
            assert (torch.frexp(factors).mantissa == 0.5).all()
            assert factors[LARGE].min() >= 4 * factors.median()


def relative(values: torch.Tensor, exact: torch.Tensor) -> float:
    return ((values.double() - exact).norm() / exact.norm()).item()


def test_real_weights_have_large_channels_that_cost_the_others_their_digits(
    minilm_folder: Path, make_batch: MakeBatch
) -> None:
    module = AutoModel.from_pretrained(minilm_folder, add_pooling_layer=False, dtype=torch.float32).eval()
    weights, batch = weights_from_module(module), make_batch(LENGTHS, vocab_size=module.config.vocab_size)
    exact = reference.encode(weights, batch).features
    plain, smoothed = (relative(portable_int8(weights, smooth=smooth)(batch), exact) for smooth in (False, True))
    assert smoothed < plain / 1.7
    library = native().library
    for isa in (*ISAS["int8"], EMULATED_INT8_ISA):
        if library is not None and library.isotrain_cpu_has(isa.encode()):
            assert relative(NativeEncoder(weights, isa)(batch), exact) < 1.1 * smoothed


# --- encoders


@pytest.mark.parametrize(("dtype", "least", "most"), [("int8", 2e-3, 4e-2), ("float8_e4m3", 8e-3, 0.15)])
@pytest.mark.parametrize("architecture", ["albert-tiny", "bert-small"])
def test_features_are_within_the_formats_error_of_float64(
    dtype: str, least: float, most: float, architecture: str, build: Build, make_batch: MakeBatch
) -> None:
    weights, batch = weights_from_module(build(architecture)), make_batch(LENGTHS, pairs=True)
    exact = reference.encode(weights, batch).features
    portable = PortableEncoder(
        weights.to(dtype=torch.bfloat16),
        torch.bfloat16,
        torch.float32,
        make_linear=eight_bit_linear(dtype, weights.config),
    )
    ideal = IdealEncoder(weights, torch.bfloat16, dtype, seed=0)
    found = [relative(encoder(batch), exact) for encoder in (portable, ideal)]
    assert all(least < one < most for one in found), found
    assert max(found) < 1.5 * min(found)


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
@pytest.mark.parametrize("architecture", ["albert-tiny", "albert-grouped", "bert-small"])
def test_engines_have_the_same_bits(architecture: str, build: Build, make_batch: MakeBatch) -> None:
    """Integer sums are exact, and all else is computed by the same instructions."""
    library = native().library
    assert library is not None
    weights, batch = weights_from_module(build(architecture)), make_batch(LENGTHS, pairs=True)
    known = [isa for isa in (*ISAS["int8"], EMULATED_INT8_ISA) if library.isotrain_cpu_has(isa.encode())]
    first, *others = (NativeEncoder(weights, isa)(batch) for isa in known)
    assert others
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
def test_native_states_are_those_of_the_portable_kernel(build: Build, make_batch: MakeBatch) -> None:
    """Each layer, given the same states: what differs is where bfloat16 is rounded to, far below a step of int8."""
    weights, batch = weights_from_module(build("albert-tiny")), make_batch(LENGTHS)
    cpu = get_backend("cpu")
    policy = cpu.cast_policy("int8")
    portable, kernel = (cpu.frozen_encoder(weights, policy, name) for name in ("portable", "native"))
    exact = [state.float() for state in reference.encode(weights, batch, keep_layer_states=True).layer_states[0]]
    one = PackedBatch.from_lists([batch.input_ids[: LENGTHS[0]].tolist()])
    for ours, theirs in zip(kernel.layer_states(one, exact[:-1]), portable.layer_states(one, exact[:-1]), strict=True):
        assert relative(ours, theirs.double()) < 1e-2


def test_the_policy_says_what_it_is() -> None:
    for backend in ("cpu", "ideal"):
        policy = get_backend(backend).cast_policy("int8")
        assert policy.label == "int8 weights and activations, int32 sums"
        assert policy.reason.startswith(policy.label)
        assert (policy.param, policy.compute, policy.accumulate) == ("bfloat16", "int8", "float32")
    assert get_backend("ideal").cast_policy("float8_e4m3").label == EIGHT_BIT["float8_e4m3"]


def test_a_processor_without_units_says_that_it_emulates_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isotrain.backends.host.processor.int8_units", lambda: "")
    assert "emulated: this CPU has no int8 units" in get_backend("cpu").cast_policy("int8").reason


@pytest.mark.parametrize("kernel", ["compile", "transformers"])
def test_kernels_without_8_bits_refuse_in_one_line(kernel: str) -> None:
    cpu, encoder = get_backend("cpu"), load_encoder("random:tiny")
    with pytest.raises(UserError, match=r"has no int8 weights and activations, int32 sums; .*auto") as caught:
        frozen_encoder(encoder, cpu, cpu.cast_policy("int8"), kernel)
    assert "\n" not in str(caught.value)


def test_nothing_is_trained_in_8_bits() -> None:
    cpu = get_backend("cpu")
    with pytest.raises(UserError, match=r"dtype 'int8' is for a frozen encoder's features.*freeze_encoder: true"):
        cpu.session(torch.nn.Linear(2, 2), lambda parameters: torch.optim.SGD(parameters, lr=0.1), "int8")


def test_cuda_has_them_behind_the_same_key(
    monkeypatch: pytest.MonkeyPatch, build: Build, make_batch: MakeBatch
) -> None:
    """With the host in the GPU's place; which formats there are depends on the compute capability."""
    capability = (8, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    cuda, weights, batch = HostedCuda(), weights_from_module(build("bert-small")), make_batch(LENGTHS)
    with pytest.raises(UserError, match="allowed are float32, bfloat16, float16, float64, int8;"):
        cuda.cast_policy("float8_e4m3")
    capability = (9, 0)
    exact = reference.encode(weights, batch).features
    for dtype, most in (("int8", 4e-2), ("float8_e4m3", 0.15)):
        policy = cuda.cast_policy(dtype)
        assert policy.reason.startswith(f"{EIGHT_BIT[dtype]} on tensor cores")
        encoder = cuda.frozen_encoder(weights, policy)
        assert encoder.name == "portable"
        assert relative(encoder(batch), exact) < most
        with pytest.raises(UserError, match="the Triton kernels have no"):
            cuda.frozen_encoder(weights, policy, "triton")
    uneven_weights = weights_from_module(build("albert-tiny", intermediate_size=72))
    with pytest.raises(UserError, match=r"intermediate_size 72 .it must be a multiple of 16"):
        cuda.frozen_encoder(uneven_weights, policy)
