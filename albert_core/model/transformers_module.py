"""transformers' AlbertModel and BertModel as encoders: how they are called and what they contain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ... import UserError
from ...kernels.packed import PaddedBatch
from ...kernels.weights import DropoutRates, EncoderConfig, EncoderWeights, LayerWeights

if TYPE_CHECKING:
    from torch import nn


def padded_states(
    module: Any, batch: PaddedBatch, *, static: bool, attention: Callable[..., torch.Tensor] | None = None
) -> torch.Tensor:
    """Computes the last hidden states [B, L, hidden] of a padded batch with a transformers AlbertModel or BertModel.

    Args:
        static: Whether the device compiles a program for each shape, or a read waits for it. transformers checks
            whether a mask [B, L] masks anything. On such a device that fetches a value in the middle of a step, and may
            need two programs per shape. A mask [B, 1, 1, L] is used without the check.
        attention: That of the backend, for a module that `take_packed` has prepared; else transformers' own.
    """
    direct = static or attention is not None
    mask = batch.attention_mask.bool()[:, None, None] if direct else batch.attention_mask
    others = {} if attention is None else {"padded_attention": attention}
    output = module(input_ids=batch.input_ids, attention_mask=mask, token_type_ids=batch.token_type_ids, **others)
    states: torch.Tensor = output.last_hidden_state
    return states


def fuse_activations(module: nn.Module) -> None:
    """Replaces gelu_new, which transformers computes by eight operators, by torch's one operator for it."""
    from torch.nn import GELU
    from transformers.activations import NewGELUActivation

    for part in module.modules():
        for name, child in part.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(part, name, GELU(approximate="tanh"))


def encoder_layers(module: Any) -> list[nn.Module]:
    """The layers of a transformers AlbertModel or BertModel. In ALBERT, few modules serve as many layers."""
    stack = module.encoder
    if module.config.model_type == "albert":
        return [layer for group in stack.albert_layer_groups for layer in group.albert_layers]
    return list(stack.layer)


def check_attention(config: Any, label: str) -> None:
    """Rejects models that nothing here computes correctly.

    transformers 5 silently ignores relative positions. In our kernels every token attends to all others, unlike in a
    decoder.
    """
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        raise UserError(
            f"{label} has position_embedding_type {positions!r}, which neither transformers 5 nor isotrain computes; "
            "give a model with absolute positions"
        )
    if getattr(config, "is_decoder", False):
        raise UserError(
            f"{label} is a decoder (is_decoder: true in its config.json): [CLS] sees itself alone; give an encoder"
        )


def dropout_rates(module: Any) -> DropoutRates:
    """What a transformers AlbertModel or BertModel drops now. Its layers all have the same rates."""
    if not module.training:
        return DropoutRates()
    embedding, layer = module.embeddings.dropout.p, encoder_layers(module)[0]
    attention: Any = layer.attention
    if module.config.model_type == "albert":
        return DropoutRates(embedding, attention.attention_dropout.p, attention.output_dropout.p)
    output: Any = layer.output
    return DropoutRates(embedding, attention.self.dropout.p, attention.output.dropout.p, output.dropout.p)


def weights_from_module(module: nn.Module, *, trained: bool = False) -> EncoderWeights:
    """The weights of a transformers AlbertModel or BertModel under the kernels' names.

    Args:
        trained: Whether to return the parameters themselves, instead of tensors that autograd doesn't know.

    Raises:
        UserError: Another architecture, a position embedding that is not absolute, or a decoder.
    """
    config: Any = module.config
    check_attention(config, f"this {config.model_type} module")
    state = {name: one if trained else one.detach() for name, one in module.named_parameters()}
    if config.model_type == "albert":
        layers, order = _albert_layers(config, state)
        projection = "encoder.embedding_hidden_mapping_in."
    elif config.model_type == "bert":
        layers, order = _bert_layers(config, state)
        projection = None
    else:
        raise UserError(f"{config.model_type!r} weights have no packed kernel; allowed are albert and bert")
    return EncoderWeights(
        config=EncoderConfig(
            kind=config.model_type,
            vocab_size=config.vocab_size,
            embedding_size=getattr(config, "embedding_size", config.hidden_size),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_heads=config.num_attention_heads,
            max_positions=config.max_position_embeddings,
            type_vocab_size=config.type_vocab_size,
            activation=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            weights_of_layer=order,
        ),
        word_embeddings=state["embeddings.word_embeddings.weight"],
        position_embeddings=state["embeddings.position_embeddings.weight"],
        token_type_embeddings=state["embeddings.token_type_embeddings.weight"],
        embedding_norm_weight=state["embeddings.LayerNorm.weight"],
        embedding_norm_bias=state["embeddings.LayerNorm.bias"],
        projection_weight=None if projection is None else state[projection + "weight"],
        projection_bias=None if projection is None else state[projection + "bias"],
        layers=tuple(layers),
    )


def _albert_layers(config: Any, state: dict[str, torch.Tensor]) -> tuple[list[LayerWeights], tuple[int, ...]]:
    names = {
        "query": "attention.query",
        "key": "attention.key",
        "value": "attention.value",
        "attention_output": "attention.dense",
        "attention_norm": "attention.LayerNorm",
        "ffn": "ffn",
        "ffn_output": "ffn_output",
        "output_norm": "full_layer_layer_norm",
    }
    inner = config.inner_group_num
    layers = [
        _layer(state, f"encoder.albert_layer_groups.{group}.albert_layers.{index}.", names)
        for group in range(config.num_hidden_groups)
        for index in range(inner)
    ]
    order: list[int] = []
    for layer in range(config.num_hidden_layers):
        group = int(layer / (config.num_hidden_layers / config.num_hidden_groups))
        order.extend(group * inner + index for index in range(inner))
    return layers, tuple(order)


def _bert_layers(config: Any, state: dict[str, torch.Tensor]) -> tuple[list[LayerWeights], tuple[int, ...]]:
    names = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "ffn": "intermediate.dense",
        "ffn_output": "output.dense",
        "output_norm": "output.LayerNorm",
    }
    layers = [_layer(state, f"encoder.layer.{index}.", names) for index in range(config.num_hidden_layers)]
    return layers, tuple(range(config.num_hidden_layers))


def _layer(state: dict[str, torch.Tensor], prefix: str, names: dict[str, str]) -> LayerWeights:
    return LayerWeights(
        **{
            f"{role}_{part}": state[f"{prefix}{name}.{part}"]
            for role, name in names.items()
            for part in ("weight", "bias")
        }
    )
