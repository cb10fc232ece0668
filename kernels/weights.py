"""The weights of a frozen ALBERT or BERT encoder as plain tensors, the input of every kernel.

No modules, file formats or model names: a loader fills these dataclasses, and a kernel packs them as it needs. Linear
weights have torch's layout (out, in): ``y = x @ weight.T + bias``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass, fields, replace
from typing import Any

import torch

from .. import UserError

KINDS = ("albert", "bert")


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder. Positions start at 0.

    Attributes:
        max_positions: The longest sequence in tokens.
        activation: transformers' name. Each kernel says which ones it supports.
        weights_of_layer: For each layer in order, the index in `EncoderWeights.layers` of its weights. ALBERT-base has
            ``(0,) * 12`` (one set, twelve layers), BERT ``(0, 1, ..., n - 1)``.

    Raises:
        UserError: The numbers contradict each other.
    """

    kind: str
    vocab_size: int
    embedding_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    max_positions: int
    type_vocab_size: int
    activation: str
    layer_norm_eps: float
    weights_of_layer: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"encoder kind {self.kind!r} is unknown; the kinds are {', '.join(KINDS)}")
        for field in fields(self):
            if field.type == "int" and getattr(self, field.name) < 1:
                raise UserError(f"{field.name} is {getattr(self, field.name)}; it must be at least 1")
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                "every head must have the same width"
            )
        if self.kind == "bert" and self.embedding_size != self.hidden_size:
            raise UserError(
                f"a BERT encoder has embeddings of hidden_size {self.hidden_size}, not {self.embedding_size}; "
                "only ALBERT projects smaller embeddings"
            )
        if not self.layer_norm_eps > 0.0:
            raise UserError(f"layer_norm_eps is {self.layer_norm_eps}; it must be above 0")
        if not self.weights_of_layer or min(self.weights_of_layer) < 0:
            raise UserError(
                f"weights_of_layer is {self.weights_of_layer}; it needs at least one layer and layer numbers from 0"
            )

    @property
    def num_layers(self) -> int:
        return len(self.weights_of_layer)

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One transformer layer (post-norm). h = hidden_size, f = intermediate_size.

    Weights and biases: query, key, value and attention_output (h, h), (h); ffn (f, h), (f); ffn_output (h, f), (h).
    attention_norm and output_norm, the LayerNorms after each residual, have (h), (h).
    """

    query_weight: torch.Tensor
    query_bias: torch.Tensor
    key_weight: torch.Tensor
    key_bias: torch.Tensor
    value_weight: torch.Tensor
    value_bias: torch.Tensor
    attention_output_weight: torch.Tensor
    attention_output_bias: torch.Tensor
    attention_norm_weight: torch.Tensor
    attention_norm_bias: torch.Tensor
    ffn_weight: torch.Tensor
    ffn_bias: torch.Tensor
    ffn_output_weight: torch.Tensor
    ffn_output_bias: torch.Tensor
    output_norm_weight: torch.Tensor
    output_norm_bias: torch.Tensor


@dataclass(frozen=True, eq=False)
class EncoderWeights:
    """All tensors of a frozen encoder, of one floating dtype and on one device.

    word_embeddings (vocab_size, e), position_embeddings (max_positions, e), token_type_embeddings (type_vocab_size, e)
    and embedding_norm (e), (e), with e = embedding_size. projection is (h, e), (h) for ALBERT and None for BERT.

    Raises:
        UserError: A shape, dtype or device doesn't fit `config`; the message names the tensor.
    """

    config: EncoderConfig
    word_embeddings: torch.Tensor
    position_embeddings: torch.Tensor
    token_type_embeddings: torch.Tensor
    embedding_norm_weight: torch.Tensor
    embedding_norm_bias: torch.Tensor
    projection_weight: torch.Tensor | None
    projection_bias: torch.Tensor | None
    layers: tuple[LayerWeights, ...]

    def __post_init__(self) -> None:
        last = max(self.config.weights_of_layer)
        if last >= len(self.layers):
            raise UserError(
                f"weights_of_layer names layer {last} but {len(self.layers)} layers were given; "
                f"the highest allowed is {len(self.layers) - 1}"
            )
        projects = self.config.kind == "albert"
        if (self.projection_weight is not None) != projects or (self.projection_bias is not None) != projects:
            raise UserError(
                f"kind {self.config.kind!r} {'needs' if projects else 'has no'} projection_weight and projection_bias; "
                "ALBERT has both, BERT has neither"
            )
        expected = tensor_shapes(self.config)
        for name, tensor in self.named_tensors():
            shape = expected[name.rpartition(".")[2]]
            if tuple(tensor.shape) != shape:
                raise UserError(f"tensor {name} has shape {tuple(tensor.shape)}; the configuration asks for {shape}")
            if not tensor.is_floating_point():
                raise UserError(f"tensor {name} has dtype {tensor.dtype}; weights must be floating point")
            if tensor.dtype != self.dtype or tensor.device != self.device:
                raise UserError(
                    f"tensor {name} is {tensor.dtype} on {tensor.device} but word_embeddings is {self.dtype} on "
                    f"{self.device}; all weights must share one dtype and device (see EncoderWeights.to)"
                )

    @property
    def dtype(self) -> torch.dtype:
        return self.word_embeddings.dtype

    @property
    def device(self) -> torch.device:
        return self.word_embeddings.device

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of every tensor in a fixed order. Names are like ``layers.0.query_weight``."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                yield field.name, value
        for index, layer in enumerate(self.layers):
            for field in fields(layer):
                yield f"layers.{index}.{field.name}", getattr(layer, field.name)

    def mapped(self, change: Callable[[str, torch.Tensor], torch.Tensor]) -> EncoderWeights:
        """These weights with `change(name, tensor)` in each tensor's place. Names are those of `named_tensors`."""
        changed: dict[str, Any] = {name: change(name, tensor) for name, tensor in self.named_tensors()}
        layers = tuple(
            LayerWeights(**{field.name: changed.pop(f"layers.{index}.{field.name}") for field in fields(layer)})
            for index, layer in enumerate(self.layers)
        )
        return replace(self, layers=layers, **changed)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> EncoderWeights:
        """These weights on `device`, rounded to `dtype`. Tensors that already fit are shared, not copied."""
        return self.mapped(lambda _, tensor: tensor.to(device=device, dtype=dtype))

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the configuration and every tensor's name, shape and values as little-endian float32.

        It is the same on every machine and device. Weights that are equal in float32 have the same fingerprint.
        """
        config = asdict(self.config)
        # Caches and checkpoints know it by this name.
        config["layer_of_repetition"] = config.pop("weights_of_layer")
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for name, tensor in self.named_tensors():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
            digest.update(values.astype("<f4", copy=False).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class DropoutRates:
    """The share of values that a trained encoder drops at each kind of place.

    Attributes:
        embedding: Of the embedding.
        attention: Of attention's probabilities.
        attention_output: Of what attention adds to the residual stream.
        output: Of what the feed-forward layers add to it.
    """

    embedding: float = 0.0
    attention: float = 0.0
    attention_output: float = 0.0
    output: float = 0.0

    def draw_key(self) -> int:
        """The key of one forward pass's masks, from torch's host generator. 0 and no draw if nothing is dropped."""
        return int(torch.randint(2**63 - 1, ())) if any(astuple(self)) else 0


def check_finite(weights: EncoderWeights) -> None:
    """Raises UserError for a NaN or an infinity, naming the first tensor with one and the position."""
    for name, tensor in weights.named_tensors():
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            where = tuple((~finite).nonzero()[0].tolist())
            raise UserError(
                f"tensor {name} holds {int((~finite).sum())} values that are NaN or infinite, the first at {where}; "
                "the checkpoint is damaged or its training diverged: load another one"
            )


def tensor_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of an encoder of `config`, by the name of its field."""
    e, h, f = config.embedding_size, config.hidden_size, config.intermediate_size
    norms = {"embedding_norm": e, "attention_norm": h, "output_norm": h}
    products = dict.fromkeys(("query", "key", "value", "attention_output"), (h, h))
    products |= {"projection": (h, e), "ffn": (f, h), "ffn_output": (h, f)}
    return {
        "word_embeddings": (config.vocab_size, e),
        "position_embeddings": (config.max_positions, e),
        "token_type_embeddings": (config.type_vocab_size, e),
        **{f"{name}_{part}": (width,) for name, width in norms.items() for part in ("weight", "bias")},
        **{f"{name}_weight": shape for name, shape in products.items()},
        **{f"{name}_bias": shape[:1] for name, shape in products.items()},
    }
