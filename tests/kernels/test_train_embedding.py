"""The native embedding of a trained encoder: its values and gradients are those of float64, word by word."""

from __future__ import annotations

import pytest
import torch
from isotrain.kernels.cpu.embedding import embed
from isotrain.kernels.cpu.library import best_isa, why_not
from isotrain.kernels.cpu.recycled import Recycled
from isotrain.kernels.packed import PackedBatch
from isotrain.kernels.weights import DropoutRates, EncoderConfig, EncoderWeights, LayerWeights, tensor_shapes
from torch.nn import functional

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")

PADDING, WORDS = 3, 40


def weights_of(width: int) -> EncoderWeights:
    """Trained parameters of a BERT with one layer, of which only the embedding is used."""
    config = EncoderConfig("bert", WORDS, width, width, 64, 1, 20, 2, "gelu", 1e-6, (0,))
    generator = torch.Generator().manual_seed(width)

    def make(name: str) -> torch.Tensor:
        return torch.randn(tensor_shapes(config)[name], generator=generator).requires_grad_()

    layer = LayerWeights(**{name: make(name) for name in LayerWeights.__dataclass_fields__})
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    made = [make(name) for name in (*tables, "embedding_norm_weight", "embedding_norm_bias")]
    return EncoderWeights(config, *made, None, None, (layer,))


def batch_of(types: bool = True) -> PackedBatch:
    """Words that come back in a text and in another one, and the padding word."""
    ids = [[1, 5, 5, 7, 39], [PADDING], [5, 1, PADDING, 12, 2, 1, 1, 6, 20]]
    batch = PackedBatch.from_lists(ids, [[place % 2 for place in range(len(row))] for row in ids])
    return batch if types else PackedBatch(batch.input_ids, batch.cu_seqlens, batch.position_ids)


def trained(weights: EncoderWeights) -> list[torch.Tensor]:
    return [tensor for name, tensor in weights.named_tensors() if not name.startswith("layers.")]


@pytest.mark.parametrize("width", [16, 64, 128, 384])
@pytest.mark.parametrize("types", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_values_and_gradients_are_those_of_float64(width: int, types: bool, rate: float) -> None:
    weights, batch = weights_of(width), batch_of(types)
    found = embed(weights, batch, best_isa() or "", PADDING, rate, 9, Recycled())
    exact = [tensor.detach().double().requires_grad_() for tensor in trained(weights)]
    words, positions, kinds, scale, shift = exact
    plain = functional.embedding(batch.input_ids, words, padding_idx=PADDING)
    plain = plain + kinds[torch.zeros_like(batch.input_ids) if batch.token_type_ids is None else batch.token_type_ids]
    plain = functional.layer_norm(plain + positions[batch.position_ids], (width,), scale, shift, 1e-6)
    # What was dropped is told by the zeros.
    mask = (found.detach() != 0).double() * 65536 / (65536 - round(rate * 65536))
    assert abs(float((mask == 0).double().mean()) - rate) < 0.1
    plain = plain * mask
    torch.testing.assert_close(found.double(), plain, rtol=0, atol=2e-5)
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (plain * slope).sum().backward()
    (found * slope).sum().backward()
    for got, wanted in zip(trained(weights), exact, strict=True):
        assert got.grad is not None
        torch.testing.assert_close(got.grad.double(), wanted.grad, rtol=1e-4, atol=2e-5)
    assert not weights.word_embeddings.grad[PADDING].any()
    assert weights.word_embeddings.grad[1].any()


@pytest.mark.parametrize("padding", [PADDING, None])
@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_a_sparse_gradient_has_the_bits_of_the_dense_one(padding: int | None, rate: float) -> None:
    batch, slope = batch_of(), torch.randn(15, 32, generator=torch.Generator().manual_seed(1))
    dense, sparse = weights_of(32), weights_of(32)
    for weights, rows in ((dense, False), (sparse, True)):
        (embed(weights, batch, best_isa() or "", padding, rate, 9, Recycled(), rows) * slope).sum().backward()
    gradient = sparse.word_embeddings.grad
    assert gradient is not None
    assert torch.equal(gradient.coalesce().indices()[0], batch.input_ids.unique())
    for got, wanted in zip(trained(sparse), trained(dense), strict=True):
        assert torch.equal(got.grad.to_dense(), wanted.grad)


def test_a_word_without_a_number_spoils_its_own_rows_only() -> None:
    weights, batch = weights_of(32), batch_of()
    with torch.no_grad():
        weights.word_embeddings[7, 2] = torch.nan
    found = embed(weights, batch, best_isa() or "", None, 0.0, 0, Recycled())
    assert torch.equal(found.isfinite().all(dim=1), batch.input_ids != 7)
    found.sum().backward()
    assert weights.word_embeddings.grad is not None
    assert not weights.embedding_norm_weight.grad.isfinite().all()
    rows = weights.word_embeddings.grad.isfinite().all(dim=1)
    assert not rows[7]
    assert rows[1]


def test_what_is_not_trained_gets_no_gradient() -> None:
    weights = weights_of(32)
    weights.position_embeddings.requires_grad_(False)
    embed(weights, batch_of(), best_isa() or "", None, 0.0, 0, Recycled()).sum().backward()
    assert weights.position_embeddings.grad is None
    assert weights.token_type_embeddings.grad is not None


def test_a_key_is_drawn_only_if_something_is_dropped() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert DropoutRates().draw_key() == 0
    assert torch.equal(torch.get_rng_state(), before)
    keys = {DropoutRates(attention=0.1).draw_key() for _ in range(50)}
    assert len(keys) == 50
    assert all(0 <= key < 2**63 for key in keys)
    torch.manual_seed(3)
    assert DropoutRates(output=0.5).draw_key() in keys


def test_memory_is_used_again_only_when_the_last_tensor_on_it_is_gone() -> None:
    recycled = Recycled()
    first = recycled.empty(torch.Size((3, 4)))
    place, kept = first.data_ptr(), first[1:].detach()
    del first
    second = recycled.empty(torch.Size((3, 4)))
    assert second.data_ptr() != place
    kept.fill_(7.0)
    second.fill_(1.0)
    assert bool((kept == 7.0).all())
    del kept
    assert recycled.empty(torch.Size((4, 3))).data_ptr() != place
    assert recycled.empty(torch.Size((3, 4))).data_ptr() == place


def test_a_gradient_that_is_kept_is_not_overwritten() -> None:
    weights, batch, recycled = weights_of(16), batch_of(), Recycled()
    found: list[torch.Tensor] = []
    for factor in (1.0, 2.0, 3.0):
        slope = torch.linspace(0, factor, 15 * 16).view(15, 16)
        (embed(weights, batch, best_isa() or "", None, 0.0, 0, recycled) * slope).sum().backward()
        assert weights.word_embeddings.grad is not None
        found.append(weights.word_embeddings.grad)
        weights.word_embeddings.grad = None
    assert len({gradient.data_ptr() for gradient in found}) == 3
    torch.testing.assert_close(found[1], 2.0 * found[0])
    torch.testing.assert_close(found[2], 3.0 * found[0])
    places = {gradient.data_ptr() for gradient in found}
    del found
    embed(weights, batch, best_isa() or "", None, 0.0, 0, recycled).sum().backward()
    assert weights.word_embeddings.grad is not None
    assert weights.word_embeddings.grad.data_ptr() in places, "autograd copied the gradient"
