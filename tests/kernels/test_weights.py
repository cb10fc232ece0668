"""Encoder weights: what is refused, and a fingerprint that is the same everywhere."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from isotrain import UserError
from isotrain.kernels.weights import EncoderConfig, EncoderWeights, LayerWeights, check_finite

CONFIG = EncoderConfig(
    kind="albert",
    vocab_size=7,
    embedding_size=4,
    hidden_size=6,
    intermediate_size=5,
    num_heads=2,
    max_positions=8,
    type_vocab_size=2,
    activation="gelu_new",
    layer_norm_eps=1e-12,
    weights_of_layer=(0, 0, 1),
)


def counting_weights() -> EncoderWeights:
    """Weights whose values count up, so that they are the same on every machine and no two tensors are alike."""
    state = {"next": 0}

    def tensor(*shape: int) -> torch.Tensor:
        size = torch.Size(shape).numel()
        values = torch.arange(state["next"], state["next"] + size, dtype=torch.float32) / 64
        state["next"] += size
        return values.view(shape)

    def layer() -> LayerWeights:
        h, f = 6, 5
        shapes = {"ffn_weight": (f, h), "ffn_bias": (f,), "ffn_output_weight": (h, f)}
        vectors = ("_bias", "norm_weight")
        return LayerWeights(
            **{
                field.name: tensor(*shapes.get(field.name, (h,) if field.name.endswith(vectors) else (h, h)))
                for field in fields(LayerWeights)
            }
        )

    return EncoderWeights(
        config=CONFIG,
        word_embeddings=tensor(7, 4),
        position_embeddings=tensor(8, 4),
        token_type_embeddings=tensor(2, 4),
        embedding_norm_weight=tensor(4),
        embedding_norm_bias=tensor(4),
        projection_weight=tensor(6, 4),
        projection_bias=tensor(6),
        layers=(layer(), layer()),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "gpt2"}, "gpt2"),
        ({"num_heads": 4}, "not a multiple of num_heads"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ({"weights_of_layer": ()}, "at least one layer"),
        ({"weights_of_layer": (0, -1)}, "layer numbers from 0"),
        ({"kind": "bert"}, "BERT"),
    ],
)
def test_a_contradictory_configuration_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"word_embeddings": torch.zeros(8, 4)}, "word_embeddings has shape"),
        ({"embedding_norm_bias": torch.zeros(4, dtype=torch.int64)}, "embedding_norm_bias has dtype"),
        ({"embedding_norm_bias": torch.zeros(4, dtype=torch.float64)}, "embedding_norm_bias is torch.float64"),
        ({"projection_bias": None}, "needs projection_weight and projection_bias"),
        ({"layers": ()}, "names layer 1 but 0 layers"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(counting_weights(), **change)


def test_a_layers_tensor_is_refused_by_its_full_name() -> None:
    weights = counting_weights()
    wrong = replace(weights.layers[1], ffn_weight=weights.layers[1].ffn_weight.T)
    with pytest.raises(
        UserError, match=r"layers\.1\.ffn_weight has shape \(6, 5\); the configuration asks for \(5, 6\)"
    ):
        replace(weights, layers=(weights.layers[0], wrong))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_check_finite_names_the_tensor_and_the_place(value: float) -> None:
    weights = counting_weights()
    check_finite(weights)
    weights.layers[1].key_weight[2, 3] = value
    with pytest.raises(UserError, match=r"layers\.1\.key_weight holds 1 values .* first at \(2, 3\)"):
        check_finite(weights)


def test_the_fingerprint_is_the_same_on_every_machine() -> None:
    assert counting_weights().fingerprint() == "1de25ff35a99ec0f68ace11edcf0f2a7fac89d482cd3625fa4290920dfa5ec67"


def test_the_fingerprint_sees_every_tensor_and_the_configuration() -> None:
    weights = counting_weights()
    seen = {weights.fingerprint(), replace(weights, config=replace(CONFIG, layer_norm_eps=1e-5)).fingerprint()}
    names = [name for name, _ in weights.named_tensors()]
    for _, tensor in weights.named_tensors():
        before = tensor.view(-1)[-1].item()
        tensor.view(-1)[-1] += 1 / 64
        seen.add(weights.fingerprint())
        tensor.view(-1)[-1] = before
    assert len(seen) == len(names) + 2
    assert len(set(names)) == len(names) == 7 + 2 * 16


def test_the_fingerprint_ignores_memory_layout_and_a_wider_dtype() -> None:
    weights = counting_weights()
    transposed = replace(weights, word_embeddings=weights.word_embeddings.T.contiguous().T)
    assert not transposed.word_embeddings.is_contiguous()
    assert transposed.fingerprint() == weights.fingerprint()
    assert weights.to(dtype=torch.float64).fingerprint() == weights.fingerprint()
    assert weights.to(dtype=torch.bfloat16).fingerprint() != weights.fingerprint()


def test_to_converts_every_tensor_and_shares_what_fits() -> None:
    weights = counting_weights()
    narrow = weights.to(dtype=torch.bfloat16)
    assert {tensor.dtype for _, tensor in narrow.named_tensors()} == {torch.bfloat16}
    assert narrow.dtype == torch.bfloat16
    same = weights.to("cpu", torch.float32)
    assert all(
        ours.data_ptr() == given.data_ptr()
        for (_, ours), (_, given) in zip(same.named_tensors(), weights.named_tensors(), strict=True)
    )
