"""The frozen encoder and trained layers in emulated arithmetic, judged by the float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.kernels import reference
from isotrain.kernels.packed import PackedBatch
from isotrain.kernels.tt import native
from isotrain.kernels.tt.arithmetic import Arithmetic
from isotrain.kernels.tt.autograd import TtLinear
from isotrain.kernels.tt.encoder import TtEncoder
from isotrain.kernels.tt.modules import emulate_modules
from isotrain.kernels.weights import EncoderWeights

pytestmark = pytest.mark.core

FIDELITIES = ("lofi", "hifi2", "hifi3", "hifi4")


@pytest.fixture(scope="module")
def weights() -> EncoderWeights:
    return load_encoder("random:tiny").weights


@pytest.fixture(scope="module")
def batch() -> PackedBatch:
    rng = np.random.default_rng(0)
    return PackedBatch.from_lists([rng.integers(0, 1000, length).tolist() for length in (5, 17, 9, 1, 12, 12, 33)])


def error(features: torch.Tensor, exact: torch.Tensor) -> float:
    return float((features.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("fp32_dest", [False, True])
def test_errors_are_ordered_by_precision(
    mode: str, fp32_dest: bool, weights: EncoderWeights, batch: PackedBatch
) -> None:
    exact = reference.encode(weights, batch).features
    errors = {}
    for dtype in ("bfloat16", "bfp_bf8", "bfp_bf4"):
        for fidelity in FIDELITIES:
            arithmetic = Arithmetic(math_fidelity=fidelity, fp32_dest_acc_en=fp32_dest, mode=mode)
            features = TtEncoder(weights, arithmetic, dtype)(batch)
            assert features.dtype == torch.float32
            errors[dtype, fidelity] = error(features, exact)
    print(f"\n{mode}, float32 Dst {fp32_dest}: " + ", ".join(f"{k[0]} {k[1]} {v:.1e}" for k, v in errors.items()))
    assert errors["bfloat16", "hifi4"] < 0.02
    # Coarser weights and fewer phases lose more; HiFi3 and HiFi4 differ by less than rounding does.
    assert errors["bfloat16", "hifi4"] < errors["bfp_bf8", "hifi4"] < errors["bfp_bf4", "hifi4"]
    assert errors["bfloat16", "hifi4"] < errors["bfloat16", "hifi2"] * 1.1
    assert 2 * errors["bfloat16", "hifi2"] < errors["bfloat16", "lofi"]


def test_fast_and_exact_mode_have_the_same_error(weights: EncoderWeights, batch: PackedBatch) -> None:
    exact = reference.encode(weights, batch).features
    for fidelity in FIDELITIES:
        for fp32_dest in (False, True):
            errors = [
                error(TtEncoder(weights, Arithmetic("wormhole", fidelity, fp32_dest, mode=mode))(batch), exact)
                for mode in ("fast", "exact")
            ]
            assert 1 / 1.5 < errors[0] / errors[1] < 1.5, (fidelity, fp32_dest, errors)


def test_exact_features_are_the_same_bits_in_every_batch(weights: EncoderWeights, batch: PackedBatch) -> None:
    encoder = TtEncoder(weights, Arithmetic(mode="exact"))
    features = encoder(batch)
    assert torch.equal(encoder(batch.to_padded(length=40)), features)
    assert torch.equal(TtEncoder(weights, Arithmetic(mode="exact"), chunk_tokens=10)(batch), features)
    ids, offsets = batch.input_ids.numpy(), batch.cu_seqlens.numpy()
    for index in (0, 3, 6):
        assert torch.equal(encoder(PackedBatch.from_flat(ids, offsets, [index]))[0], features[index])


def test_every_layer_is_near_the_reference(weights: EncoderWeights, batch: PackedBatch) -> None:
    states = TtEncoder(weights, Arithmetic(gemm_dtype=torch.bfloat16)).layer_states(batch)
    exact = reference.encode(weights, batch, keep_layer_states=True).layer_states
    for index, state in enumerate(states):
        assert error(state, torch.cat([sequence[index] for sequence in exact])) < 0.02


def test_features_of_another_arithmetic_have_another_version(
    weights: EncoderWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feature cache goes by it: a bfloat16 Dst has other bits where no extension computes it."""

    def versions() -> set[str]:
        return {TtEncoder(weights, Arithmetic(fp32_dest_acc_en=fp32)).version for fp32 in (True, False)}

    monkeypatch.setattr(native, "serves", lambda _: True)
    served = versions()
    monkeypatch.setattr(native, "serves", lambda _: False)
    assert len(served | versions()) == 3


def test_unknown_settings_are_refused(weights: EncoderWeights) -> None:
    with pytest.raises(UserError, match="TT dtype 'int8' is unknown; allowed are bfloat16, bfp_bf8, bfp_bf4"):
        TtEncoder(weights, weight_dtype="int8")
    with pytest.raises(UserError, match="mode 'slow' is unknown; allowed are fast, exact"):
        Arithmetic(mode="slow")


# --- training


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_gradients_go_through_the_same_arithmetic(mode: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 64, generator=generator, requires_grad=True)
    weight = torch.randn(16, 64, generator=generator, requires_grad=True)
    bias = torch.randn(16, generator=generator, requires_grad=True)
    slope = torch.randn(8, 16, generator=generator)
    errors = {}
    for fidelity in ("lofi", "hifi4"):
        x.grad = weight.grad = bias.grad = None
        TtLinear.apply(x, weight, bias, Arithmetic(math_fidelity=fidelity, mode=mode)).backward(slope)
        errors[fidelity] = (
            error(x.grad, slope.double() @ weight.detach().double()),
            error(weight.grad, slope.T.double() @ x.detach().double()),
        )
        assert torch.equal(bias.grad, slope.sum(dim=0))
    # float32 operands count with 10 bits of mantissa: more than nothing is lost, and LoFi loses much more.
    assert all(1e-5 < one < 2e-3 for one in errors["hifi4"])
    assert all(one > 10 * other for one, other in zip(errors["lofi"], errors["hifi4"], strict=True))


def test_emulated_linears_train_and_keep_their_parameters() -> None:
    torch.manual_seed(0)
    head = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
    names = list(head.state_dict())
    emulate_modules(head, Arithmetic(math_fidelity="hifi2"))
    assert list(head.state_dict()) == names
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    x, y = torch.randn(64, 32), torch.arange(64) % 4
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(head(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
