"""The native training step of an encoder's layers, judged by float64 autograd."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.kernels import reference
from isotrain.kernels.cpu.encoder import ACTIVATIONS
from isotrain.kernels.cpu.library import best_isa, why_not
from isotrain.kernels.cpu.training import TrainedLayers
from isotrain.kernels.weights import DropoutRates, EncoderConfig, EncoderWeights, LayerWeights, tensor_shapes
from support.native_kernel import factors, isas

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")

NO_DROPOUT = DropoutRates()


def make_weights(
    kind: str, order: Sequence[int], hidden: int = 64, heads: int = 4, **changes: object
) -> EncoderWeights:
    """Parameters of a trained model's spread."""
    embedding = {"albert": 32, "bert": hidden}[kind]
    config = EncoderConfig(
        kind=kind, vocab_size=10, embedding_size=embedding, hidden_size=hidden, intermediate_size=2 * hidden,
        num_heads=heads, max_positions=1000, type_vocab_size=2, activation="gelu", layer_norm_eps=1e-12,
        weights_of_layer=tuple(order),
    )  # fmt: skip
    config = replace(config, **changes)
    generator = torch.Generator().manual_seed(5)
    shapes = tensor_shapes(config)

    def tensor(name: str) -> torch.Tensor:
        scale = {"weight": 0.08, "bias": 0.1}.get(name.rpartition("_")[2], 1.0)
        values = scale * torch.randn(shapes[name], generator=generator)
        return torch.nn.Parameter(values + 1.0 if name.endswith("norm_weight") else values)

    layer_names = [field.name for field in fields(LayerWeights)]
    layers = tuple(LayerWeights(**{name: tensor(name) for name in layer_names}) for _ in range(max(order) + 1))
    names = [name for name in shapes if name in EncoderWeights.__dataclass_fields__]
    whole = {name: None if name.startswith("projection") and kind == "bert" else tensor(name) for name in names}
    return EncoderWeights(config=config, layers=layers, **whole)


def trained(weights: EncoderWeights) -> dict[str, torch.Tensor]:
    return {name: x for name, x in weights.named_tensors() if "embedding" not in name}


def make_inputs(config: EncoderConfig, lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """An embedding, and the gradient of the states."""
    generator = torch.Generator().manual_seed(9)
    tokens = sum(lengths)
    embedded = torch.randn(tokens, config.embedding_size, generator=generator).requires_grad_()
    return embedded, torch.randn(tokens, config.hidden_size, generator=generator)


def judge(weights: EncoderWeights, embedded: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """The layers in the weights' dtype, one sequence at a time."""
    x = embedded
    if weights.projection_weight is not None:
        x = x @ weights.projection_weight.T + weights.projection_bias
    states = list(x.split(list(lengths)))
    for layer in weights.config.weights_of_layer:
        states = [reference.layer_forward(weights.config, weights.layers[layer], state) for state in states]
    return torch.cat(states)


def differentiated(
    weights: EncoderWeights, embedded: torch.Tensor, gradient: torch.Tensor, forward: Callable[[], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The states, and the gradient of the embedding and of each parameter."""
    leaves = {"embedded": embedded, **trained(weights)}
    states = forward()
    gradients = torch.autograd.grad(states, list(leaves.values()), gradient.to(states.dtype))
    return {"states": states.detach(), **dict(zip(leaves, gradients, strict=True))}


def native_results(
    weights: EncoderWeights,
    lengths: Sequence[int],
    key: int = 0,
    rates: DropoutRates = NO_DROPOUT,
    **options: object,
) -> dict[str, torch.Tensor]:
    embedded, gradient = make_inputs(weights.config, lengths)
    layers = TrainedLayers(weights, **options)
    return differentiated(weights, embedded, gradient, lambda: layers(embedded, np.array(lengths), key, rates))


def exact_results(weights: EncoderWeights, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
    embedded, gradient = make_inputs(weights.config, lengths)
    exact = weights.mapped(lambda _, x: x.detach().double().requires_grad_())
    double = embedded.detach().double().requires_grad_()
    return differentiated(exact, double, gradient, lambda: judge(exact, double, lengths))


def autocast_results(weights: EncoderWeights, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
    embedded, gradient = make_inputs(weights.config, lengths)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return judge(weights, embedded, lengths)

    return differentiated(weights, embedded, gradient, forward)


def rmse(values: torch.Tensor, exact: torch.Tensor) -> float:
    return (values.double() - exact).square().mean().sqrt().item()


def assert_as_near_as_autocast(weights: EncoderWeights, lengths: Sequence[int], **options: object) -> None:
    """No result is further from float64 than by twice the distance of autocast, or of one rounding to bfloat16, and all
    together are as near."""
    exact, near = exact_results(weights, lengths), autocast_results(weights, lengths)
    found = native_results(weights, lengths, **options)

    def allowed(name: str) -> float:
        return max(rmse(near[name], exact[name]), rmse(0.0 * exact[name], exact[name]) / 512)

    ratios = {name: rmse(found[name], exact[name]) / allowed(name) for name in exact}
    assert max(ratios.values()) <= 2.0, ratios
    assert np.mean(list(ratios.values())) <= 1.1, ratios
    assert found["states"].dtype == torch.float32


SHAPES = {
    "albert": ("albert", (0, 0, 0)),
    "albert-groups": ("albert", (0, 0, 1, 1, 0)),
    "bert": ("bert", (0, 1)),
}


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_as_near_to_float64_as_those_of_autocast(shape: str, recompute: bool, isa: str) -> None:
    assert_as_near_as_autocast(make_weights(*SHAPES[shape]), [7, 1, 33, 2, 16, 8], isa=isa, recompute=recompute)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str) -> None:
    assert_as_near_as_autocast(make_weights("bert", (0,), activation=activation), [40, 25])


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize(("hidden", "heads"), [(64, 1), (128, 8), (192, 2)])
def test_head_sizes_and_widths(hidden: int, heads: int, isa: str) -> None:
    assert_as_near_as_autocast(make_weights("bert", (0,), hidden, heads), [40, 25], isa=isa)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("embedding", [16, 48, 80])
def test_embeddings_narrower_than_a_panel_and_between_two(embedding: int, isa: str) -> None:
    assert_as_near_as_autocast(make_weights("albert", (0,), embedding_size=embedding), [40, 25], isa=isa)


def test_every_length() -> None:
    weights = make_weights("bert", (0,))
    for first in range(1, 131, 13):
        for length in range(first, min(first + 13, 131), 4):
            assert_as_near_as_autocast(weights, [length, 5])


@pytest.mark.parametrize("lengths", [[60] * 13, [250] * 9], ids=["in parts", "one in parts"])
def test_weights_used_several_times_over_more_tokens_than_one_product_takes(lengths: list[int]) -> None:
    assert_as_near_as_autocast(make_weights("albert", (0, 0, 0)), lengths)


@pytest.mark.parametrize("shape", SHAPES)
def test_threads_and_recomputation_do_not_change_a_bit(shape: str) -> None:
    weights, lengths = make_weights(*SHAPES[shape]), [7, 1, 33, 2, 160, 8]
    rates = DropoutRates(attention=0.1, attention_output=0.2, output=0.3)
    expected = native_results(weights, lengths, 11, rates, threads=1)
    for threads, recompute in itertools.product((1, 2, 3), (False, True)):
        found = native_results(weights, lengths, 11, rates, threads=threads, recompute=recompute)
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def masked_judge(
    weights: EncoderWeights, embedded: torch.Tensor, lengths: Sequence[int], key: int, rates: DropoutRates
) -> torch.Tensor:
    """`judge` with the masks that the kernel draws for each layer's places, as philox.h numbers them."""
    config = weights.config

    def masks(layer: int, place: int, rate: float, rows: range, columns: int) -> torch.Tensor:
        return torch.stack([factors(key, rate, 4 * layer + place, row, columns) for row in rows]).double()

    states, start = [], 0
    for length in lengths:
        x = embedded[start : start + length]
        rows = range(start, start + length)
        for number, index in enumerate(config.weights_of_layer):
            w = weights.layers[index]
            q, k, v = (
                (x @ weight.T + bias).view(length, config.num_heads, -1).transpose(0, 1)
                for weight, bias in (
                    (w.query_weight, w.query_bias),
                    (w.key_weight, w.key_bias),
                    (w.value_weight, w.value_bias),
                )
            )
            p = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
            heads = range(config.num_heads)
            places = [
                range(start * len(heads) + head, (start + length) * len(heads) + head, len(heads)) for head in heads
            ]
            p = p * torch.stack([masks(number, 1, rates.attention, place, length) for place in places])
            attended = (p @ v).transpose(0, 1).reshape(length, -1) @ w.attention_output_weight.T
            attended = (attended + w.attention_output_bias) * masks(
                number, 2, rates.attention_output, rows, config.hidden_size
            )
            x = reference.layer_norm(
                x + attended, w.attention_norm_weight, w.attention_norm_bias, config.layer_norm_eps
            )
            inner = reference.activation(config.activation)(x @ w.ffn_weight.T + w.ffn_bias)
            outer = (inner @ w.ffn_output_weight.T + w.ffn_output_bias) * masks(
                number, 3, rates.output, rows, config.hidden_size
            )
            x = reference.layer_norm(x + outer, w.output_norm_weight, w.output_norm_bias, config.layer_norm_eps)
        states.append(x)
        start += length
    return torch.cat(states)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_dropout_drops_the_same_values_forward_and_backward(recompute: bool) -> None:
    weights, lengths = make_weights("bert", (0, 1)), [9, 20]
    rates, key = DropoutRates(attention=0.2, attention_output=0.3, output=0.4), 123456789123
    embedded, gradient = make_inputs(weights.config, lengths)
    exact = weights.mapped(lambda _, x: x.detach().double().requires_grad_())
    double = embedded.detach().double().requires_grad_()
    expected = differentiated(exact, double, gradient, lambda: masked_judge(exact, double, lengths, key, rates))
    found = native_results(weights, lengths, key, rates, recompute=recompute)
    # Any other mask is further away by more than the values themselves; a key's bias has no gradient but rounding.
    for name, value in expected.items():
        if "key_bias" not in name:
            assert rmse(found[name], value) <= 0.03 * rmse(0.0 * value, value), name


def test_a_sequence_has_the_same_states_in_every_batch() -> None:
    weights, lengths = make_weights("albert", (0, 0)), np.array([7, 1, 33, 2, 160, 8])
    embedded, _ = make_inputs(weights.config, lengths.tolist())
    layers = TrainedLayers(weights)
    together = layers(embedded, lengths, 0, NO_DROPOUT).split(lengths.tolist())
    for part, state in zip(embedded.split(lengths.tolist()), together, strict=True):
        assert torch.equal(layers(part, np.array([len(part)]), 0, NO_DROPOUT), state)


def test_without_gradients_the_states_are_the_same() -> None:
    weights, lengths = make_weights("albert", (0, 0)), np.array([7, 33])
    embedded, _ = make_inputs(weights.config, lengths.tolist())
    layers = TrainedLayers(weights)
    with torch.no_grad():
        states = layers(embedded, lengths, 0, NO_DROPOUT)
    assert not states.requires_grad
    assert torch.equal(states, layers(embedded, lengths, 0, NO_DROPOUT))


def test_layer_states_and_their_replay() -> None:
    weights, lengths = make_weights("albert", (0, 0, 0)), np.array([7, 33])
    embedded, _ = make_inputs(weights.config, lengths.tolist())
    layers = TrainedLayers(weights)
    states = layers.states(embedded, lengths)
    assert torch.equal(states[-1], layers(embedded, lengths, 0, NO_DROPOUT))
    replayed = layers.states(embedded, lengths, states[:-1])
    assert all(torch.equal(one, other) for one, other in zip(replayed, states[1:], strict=True))
    backwards = layers.states(embedded, lengths, states[:-1][::-1])
    assert torch.equal(backwards[2], states[1])
    with pytest.raises(UserError, match="a replay takes 3 states"):
        layers.states(embedded, lengths, states)


def test_changed_weights_are_taken_at_the_next_step_and_refused_by_the_last_ones_backward() -> None:
    weights, lengths = make_weights("albert", (0, 0)), np.array([7, 33])
    embedded, gradient = make_inputs(weights.config, lengths.tolist())
    layers = TrainedLayers(weights)
    before = layers(embedded, lengths, 0, NO_DROPOUT)
    with torch.no_grad():
        weights.layers[0].ffn_weight.mul_(1.5)
    after = layers(embedded, lengths, 0, NO_DROPOUT)
    assert not torch.equal(before, after)
    assert torch.equal(after, TrainedLayers(weights)(embedded, lengths, 0, NO_DROPOUT))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        before.backward(gradient)
    after.backward(gradient, retain_graph=True)
    with pytest.raises(RuntimeError, match="for one backward pass"):
        after.backward(gradient)


def test_an_optimizer_changes_what_is_computed() -> None:
    weights, lengths = make_weights("bert", (0,)), np.array([7, 33])
    embedded, gradient = make_inputs(weights.config, lengths.tolist())
    layers = TrainedLayers(weights)
    optimizer = torch.optim.AdamW(trained(weights).values(), lr=1e-2, fused=True)
    layers(embedded, lengths, 0, NO_DROPOUT).backward(gradient)
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(
            layers(embedded, lengths, 0, NO_DROPOUT), TrainedLayers(weights)(embedded, lengths, 0, NO_DROPOUT)
        )


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("lengths", [[13, 4], [600, 130]])
def test_what_an_earlier_step_left_in_memory_changes_nothing(lengths: list[int], recompute: bool, isa: str) -> None:
    weights = make_weights("albert", (0, 0, 1, 1, 0), embedding_size=48)
    embedded, gradient = make_inputs(weights.config, lengths)
    layers = TrainedLayers(weights, isa=isa, recompute=recompute)

    def step() -> dict[str, torch.Tensor]:
        return differentiated(weights, embedded, gradient, lambda: layers(embedded, np.array(lengths), 0, NO_DROPOUT))

    expected = step()
    for tokens in (sum(lengths) + 40, sum(lengths)):
        lost, slope = make_inputs(weights.config, [tokens])
        layers(lost * torch.nan, np.array([tokens]), 0, NO_DROPOUT).backward(slope)
        found = step()
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_two_passes_before_their_backward_passes() -> None:
    weights, lengths = make_weights("albert", (0, 0)), [7, 33]
    expected = native_results(weights, lengths)
    embedded, gradient = make_inputs(weights.config, lengths)
    layers = TrainedLayers(weights)
    first = layers(embedded, np.array(lengths), 0, NO_DROPOUT)
    layers(embedded[:5], np.array([5]), 0, NO_DROPOUT).sum().backward()
    weight = weights.layers[0].ffn_weight
    (found,) = torch.autograd.grad(first, [weight], gradient)
    assert torch.equal(found, expected["layers.0.ffn_weight"])


def test_frozen_parameters_get_no_gradient() -> None:
    weights, lengths = make_weights("bert", (0, 1)), [7, 33]
    expected = native_results(weights, lengths)
    frozen = weights.mapped(lambda name, x: x.detach().requires_grad_("layers.1" in name and "norm" not in name))
    embedded, gradient = make_inputs(weights.config, lengths)
    TrainedLayers(frozen)(embedded.detach(), np.array(lengths), 0, NO_DROPOUT).backward(gradient)
    for name, parameter in trained(frozen).items():
        assert (parameter.grad is not None) == parameter.requires_grad
        assert parameter.grad is None or torch.equal(parameter.grad, expected[name])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["query_bias", "ffn_weight", "ffn_bias", "output_norm_weight", "output_norm_bias"])
def test_nan_and_infinite_weights_are_seen_in_states_and_gradients(name: str, bad: float) -> None:
    weights = make_weights("bert", (0, 1))
    with torch.no_grad():
        getattr(weights.layers[0], name).view(-1)[3] = bad
    found = native_results(weights, [7, 20])
    assert not bool(torch.isfinite(found["states"]).all())
    assert not bool(torch.isfinite(found["layers.0.query_weight"]).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinite_gradients_reach_every_parameter(bad: float) -> None:
    weights, lengths = make_weights("albert", (0, 0)), np.array([7, 20])
    embedded, gradient = make_inputs(weights.config, lengths.tolist())
    gradient[9, 3] = bad
    TrainedLayers(weights)(embedded, lengths, 0, NO_DROPOUT).backward(gradient)
    for name, parameter in trained(weights).items():
        assert not bool(torch.isfinite(parameter.grad).all()), name


def test_bad_input_is_told() -> None:
    weights = make_weights("bert", (0,))
    layers = TrainedLayers(weights)
    with pytest.raises(UserError, match="doesn't fit 2 sequences of 7 tokens"):
        layers(torch.zeros(8, 64), np.array([4, 3]), 0, NO_DROPOUT)
    with pytest.raises(UserError, match="doesn't fit"):
        layers(torch.zeros(7, 64), np.array([7, 0]), 0, NO_DROPOUT)
    with pytest.raises(UserError, match="this processor can't run avx_1024"):
        TrainedLayers(weights, isa="avx_1024")
    with pytest.raises(UserError, match="hidden_size 72"):
        TrainedLayers(make_weights("bert", (0,), 72, 1))
    assert best_isa() in isas()
