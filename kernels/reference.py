"""The float64 reference: ALBERT and BERT as in their papers, one sequence at a time.

Nothing here is fast, fused, packed or shared with a kernel, so that it can judge every kernel. Sources: Devlin et al.
2018 (BERT), Lan et al. 2019 (ALBERT), Hendrycks & Gimpel 2016 (GELU), Ba et al. 2016 (LayerNorm).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .. import UserError
from .packed.batch import PackedBatch, PaddedBatch
from .weights import EncoderConfig, EncoderWeights, LayerWeights


@dataclass(frozen=True)
class ReferenceOutput:
    """Results in float64 on the host. L = tokens of a sequence, R = layers.

    Attributes:
        features: [B, hidden], each sequence's first row.
        last_hidden_state: B tensors [L, hidden].
        layers: For each sequence R + 1 tensors [L, hidden], the first layer's input and each layer's output. Empty
            unless requested.
    """

    features: torch.Tensor
    last_hidden_state: list[torch.Tensor]
    layer_states: list[list[torch.Tensor]]


def encode(
    weights: EncoderWeights, batch: PackedBatch | PaddedBatch, keep_layer_states: bool = False
) -> ReferenceOutput:
    """Runs the encoder in float64. Raises UserError for a batch that doesn't fit, or an unsupported activation."""
    batch = batch.to("cpu")
    batch.validate(weights.config)
    packed = batch.to_packed() if isinstance(batch, PaddedBatch) else batch
    exact = weights.to("cpu", torch.float64)
    finals, kept = [], []
    start = 0
    for length in packed.host_lengths.tolist():
        tokens = slice(start, start + length)
        types = torch.zeros(length, dtype=torch.int64)
        if packed.token_type_ids is not None:
            types = packed.token_type_ids[tokens]
        states = [embed(exact, packed.input_ids[tokens], types)]
        for layer in exact.config.weights_of_layer:
            states.append(layer_forward(exact.config, exact.layers[layer], states[-1]))
        finals.append(states[-1])
        if keep_layer_states:
            kept.append(states)
        start += length
    return ReferenceOutput(torch.stack([state[0] for state in finals]), finals, kept)


def embed(weights: EncoderWeights, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    """The input of the first layer for one sequence, [L, hidden], from its ids and token types [L]."""
    x = weights.word_embeddings[ids] + weights.token_type_embeddings[types] + weights.position_embeddings[: len(ids)]
    x = layer_norm(x, weights.embedding_norm_weight, weights.embedding_norm_bias, weights.config.layer_norm_eps)
    if weights.projection_weight is not None and weights.projection_bias is not None:
        x = x @ weights.projection_weight.T + weights.projection_bias
    return x


def layer_forward(config: EncoderConfig, layer: LayerWeights, x: torch.Tensor) -> torch.Tensor:
    """One layer applied to one sequence: [L, hidden] to [L, hidden]."""
    query = x @ layer.query_weight.T + layer.query_bias
    key = x @ layer.key_weight.T + layer.key_bias
    value = x @ layer.value_weight.T + layer.value_bias
    heads = []
    for head in range(config.num_heads):
        columns = slice(head * config.head_size, (head + 1) * config.head_size)
        scores = query[:, columns] @ key[:, columns].T / math.sqrt(config.head_size)
        heads.append(torch.softmax(scores, dim=-1) @ value[:, columns])
    attended = torch.cat(heads, dim=-1) @ layer.attention_output_weight.T + layer.attention_output_bias
    x = layer_norm(x + attended, layer.attention_norm_weight, layer.attention_norm_bias, config.layer_norm_eps)
    inner = activation(config.activation)(x @ layer.ffn_weight.T + layer.ffn_bias)
    outer = inner @ layer.ffn_output_weight.T + layer.ffn_output_bias
    return layer_norm(x + outer, layer.output_norm_weight, layer.output_norm_bias, config.layer_norm_eps)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred * centred).mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * weight + bias


def activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function called `name`. Raises UserError for an unsupported name, listing the supported ones."""
    if name not in _ACTIVATIONS:
        raise UserError(f"activation {name!r} is not supported; the reference has {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _gelu_erf(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": _gelu_erf,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda x: x.clamp(min=0.0),
    "silu": lambda x: x / (1.0 + torch.exp(-x)),
    "tanh": torch.tanh,
}
