"""The packed encoder in plain torch operators: any device, any floating dtype, no padding, [CLS] features only.

Compared with the model's module, it saves three things: no padding is computed, Q/K/V are one product, and the last
layer computes keys and values for all tokens but everything else for [CLS] only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ... import UserError
from ..weights import EncoderWeights, LayerWeights
from .attention import spans_of
from .batch import IntArray, PackedBatch, PaddedBatch, flat_token_index

# Tokens processed together. On a host, 512 to 4,096 were equally fast, fewer or many more slower (the widest activation
# no longer fits the last-level cache). An accelerator needs more of them to be busy.
HOST_CHUNK_TOKENS = 1024

WeightAndBias = tuple[torch.Tensor, torch.Tensor]
Linear = Callable[[torch.Tensor], torch.Tensor]
# Builds a linear layer from a weight (out, in) and a bias (out), both in the compute dtype and contiguous.
MakeLinear = Callable[[torch.Tensor, torch.Tensor], Linear]

Activation = Callable[[torch.Tensor], torch.Tensor]

# By transformers' names: activations of every kernel, and those of this one only.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": torch.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
OTHER_ACTIVATIONS: dict[str, Activation] = {
    "leaky_relu": functional.leaky_relu,
    "mish": functional.mish,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu6": functional.relu6,
}


def plain_linear(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
    """The layer as torch computes it anywhere."""
    return partial(functional.linear, weight=weight, bias=bias)


@dataclass(frozen=True)
class Smoothing:
    """Powers of two [hidden]: the inputs of qkv and ffn are divided by them, the weights' columns multiplied."""

    qkv: torch.Tensor
    ffn: torch.Tensor


@dataclass(frozen=True)
class _Layer:
    """One layer in the order of the products. Norms are in the accumulate dtype, the rest in the compute dtype.

    `qkv` gives queries, keys and values of a row together. For the last layer, `query` and `key_value` are separate.
    `smoothing` holds what their inputs and ffn's are divided by.
    """

    qkv: Linear
    query: Linear
    key_value: Linear
    attention_output: Linear
    attention_norm: WeightAndBias
    ffn: Linear
    ffn_output: Linear
    output_norm: WeightAndBias
    smoothing: Smoothing | None


@dataclass(frozen=True)
class _Rows:
    """The rows (tokens) that are processed together.

    Attributes:
        spans: (sequences, length) of each run of adjacent sequences of equal length, covering all rows in order.
        first: int64 [sequences], the row of each sequence's first token.
        mask: bool [sequences, 1, 1, length], True for real tokens, for the one span of a padded batch. None: no
            padding.
    """

    spans: list[tuple[int, int]]
    first: torch.Tensor
    mask: torch.Tensor | None = None


class PortableEncoder:
    """A frozen encoder: ``encoder(batch)`` gives float32 features [sequences, hidden] on the weights' device.

    Products run in `compute_dtype`, the residual stream and LayerNorm in `accumulate_dtype`, softmax in float32 or
    wider. `chunk_tokens` limits the tokens that are processed at once, and so the memory of a call. A sequence's
    features depend on the rest of the batch only by rounding. Tensors of `weights` are shared if they already fit, so
    they must not change afterwards. `make_linear` lets a device lay out its weights beforehand.

    Raises:
        UserError: The activation or the pair of dtypes is not supported.
    """

    name = "portable"
    version = "1"
    skips_padding = False
    batch_invariant = False

    def __init__(
        self,
        weights: EncoderWeights,
        compute_dtype: torch.dtype = torch.float32,
        accumulate_dtype: torch.dtype = torch.float32,
        chunk_tokens: int = HOST_CHUNK_TOKENS,
        make_linear: MakeLinear = plain_linear,
        smoothing: Sequence[Smoothing] | None = None,
    ) -> None:
        self.config = weights.config
        self.device = weights.device
        activations = ACTIVATIONS | OTHER_ACTIVATIONS
        if self.config.activation not in activations:
            raise UserError(
                f"activation {self.config.activation!r} is not supported; the portable kernel has "
                f"{', '.join(activations)}; use kernel transformers"
            )
        if (
            not compute_dtype.is_floating_point
            or torch.promote_types(compute_dtype, accumulate_dtype) != accumulate_dtype
        ):
            raise UserError(
                f"compute dtype {compute_dtype} with accumulate dtype {accumulate_dtype}: both must be floating point "
                "and the accumulate dtype must hold every compute value (bfloat16 with float32, for example)"
            )
        self.chunk_tokens = chunk_tokens
        if chunk_tokens < 1:
            raise UserError(f"chunk_tokens is {chunk_tokens}; it must be at least 1")
        self._compute = compute_dtype
        self._accumulate = accumulate_dtype
        self._make_linear = make_linear
        if smoothing:
            self.version += "-smoothed"
        self._activation = activations[self.config.activation]
        # The table is kept as given. Converting the rows of a lookup is cheaper than a second copy of the largest
        # tensor.
        self._word_embeddings = weights.word_embeddings
        self._position_embeddings = weights.position_embeddings.to(accumulate_dtype)
        self._token_type_embeddings = weights.token_type_embeddings.to(accumulate_dtype)
        self._embedding_norm = self._norm_weights(weights.embedding_norm_weight, weights.embedding_norm_bias)
        self._projection: Linear | None = None
        if weights.projection_weight is not None and weights.projection_bias is not None:
            self._projection = self._linear(weights.projection_weight, weights.projection_bias)
        layers = [
            self._pack(layer, smoothing[index] if smoothing else None) for index, layer in enumerate(weights.layers)
        ]
        self._layers = [layers[index] for index in self.config.weights_of_layer]

    def to(self, device: torch.device) -> PortableEncoder:
        """This encoder on `device`. Its weights are packed where they are, so nothing is computed on `device`.

        Only with linear layers that are functions of tensors. Those that a device lays out in its own way stay on it.
        """
        assert isinstance(self._layers[0].qkv, partial), "weights in a layout of the host's own can't be moved"
        moved = copy.copy(self)
        vars(moved).update(tensors_mapped(vars(self), lambda tensor: tensor.to(device)))
        moved.device = device
        return moved

    @torch.no_grad()
    def __call__(self, batch: PackedBatch | PaddedBatch) -> torch.Tensor:
        """Features, float32 [sequences, hidden]: each sequence's first row after the last layer.

        Raises:
            UserError: The batch doesn't fit the encoder (see the batch's `validate`).
        """
        batch.validate(self.config)
        batch = batch.to(self.device)
        with autocast_off(self.device):
            return self.padded_features(batch) if isinstance(batch, PaddedBatch) else self._packed_features(batch)

    @torch.no_grad()
    def layer_states(
        self, batch: PackedBatch | PaddedBatch, given: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Every token's hidden state for parity: the first layer's input, then each layer's output. No chunks or
        shortcuts.

        Returns:
            R + 1 tensors in the accumulate dtype: [tokens, hidden] in the batch's own order for a packed batch,
            [sequences, length, hidden] for a padded one (values at padding are meaningless). With `given`, R such
            tensors, each layer is applied to its own one (replayed), and there are R results.
        """
        batch.validate(self.config)
        batch = batch.to(self.device)
        with autocast_off(self.device):
            if isinstance(batch, PaddedBatch):
                shape = (*batch.input_ids.shape, -1)
                rows = _padded_rows(batch.attention_mask)
            else:
                shape = (batch.num_tokens, -1)
                rows = self._packed_rows(batch.host_lengths)
            if given is None:
                states = [self._embed_any(batch)]
                for layer in self._layers:
                    states.append(self._apply_layer(layer, states[-1], rows))
            else:
                inputs = [self._residual(x.to(self.device).reshape(-1, self.config.hidden_size)) for x in given]
                states = [self._apply_layer(layer, x, rows) for layer, x in zip(self._layers, inputs, strict=True)]
        return [state.view(shape) for state in states]

    def _packed_features(self, batch: PackedBatch) -> torch.Tensor:
        lengths = batch.host_lengths
        starts = np.cumsum(lengths) - lengths
        # Sorted by length, sequences that attention can group are adjacent, so slices replace gathers.
        order = np.argsort(lengths, kind="stable")
        features = torch.empty(len(lengths), self.config.hidden_size, dtype=torch.float32, device=self.device)
        for chosen in _chunks(order, lengths, self.chunk_tokens):
            taken = lengths[chosen]
            tokens = torch.from_numpy(flat_token_index(starts[chosen], taken)).to(self.device)
            types = None if batch.token_type_ids is None else batch.token_type_ids[tokens]
            x = self._embed(batch.input_ids[tokens], batch.position_ids[tokens], types)
            features[torch.from_numpy(chosen).to(self.device)] = self._first_rows(x, self._packed_rows(taken))
        return features

    def padded_features(self, batch: PaddedBatch) -> torch.Tensor:
        """The computation of a call without checks and copies of the batch, for a compiler to trace."""
        step = max(1, self.chunk_tokens // batch.input_ids.shape[1])
        features = []
        for start in range(0, batch.num_sequences, step):
            part = slice(start, start + step)
            types = None if batch.token_type_ids is None else batch.token_type_ids[part]
            features.append(self.padded_block(batch.input_ids[part], batch.attention_mask[part], types))
        return torch.cat(features)

    def padded_block(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None) -> torch.Tensor:
        """Features, float32 [B, hidden], of one padded batch at once: ids, mask and token types int64 [B, L]."""
        return self._first_rows(self._embed_padded(ids, types), _padded_rows(mask))

    def _first_rows(self, x: torch.Tensor, rows: _Rows) -> torch.Tensor:
        """Float32 [sequences, hidden] after all layers, from their input [tokens, hidden]."""
        for layer in self._layers[:-1]:
            x = self._apply_layer(layer, x, rows)
        return self._apply_layer(self._layers[-1], x, rows, first_only=True).to(torch.float32)

    def _embed(self, ids: torch.Tensor, positions: torch.Tensor, types: torch.Tensor | None) -> torch.Tensor:
        """The first layer's input, [tokens, hidden], from flat ids, positions and token types."""
        # functional.embedding, because with indexing a negative id would wrap if ids aren't validated (on a device).
        x = functional.embedding(ids, self._word_embeddings).to(self._accumulate)
        if types is None:
            x = x + self._token_type_embeddings[0]
        else:
            x = x + functional.embedding(types, self._token_type_embeddings)
        x = self._norm(x + functional.embedding(positions, self._position_embeddings), self._embedding_norm)
        if self._projection is not None:
            x = self._projection(x.to(self._compute)).to(self._accumulate)
        return x

    def _embed_any(self, batch: PackedBatch | PaddedBatch) -> torch.Tensor:
        if isinstance(batch, PaddedBatch):
            return self._embed_padded(batch.input_ids, batch.token_type_ids)
        return self._embed(batch.input_ids, batch.position_ids, batch.token_type_ids)

    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states in the form that a layer takes."""
        return x.to(self._accumulate)

    def _embed_padded(self, ids: torch.Tensor, types: torch.Tensor | None) -> torch.Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device).repeat(ids.shape[0])
        return self._embed(ids.flatten(), positions, None if types is None else types.flatten())

    def _apply_layer(self, layer: _Layer, x: torch.Tensor, rows: _Rows, first_only: bool = False) -> torch.Tensor:
        """One layer, from [tokens, hidden] to the same. With `first_only`, only each sequence's first row."""
        hidden, smoothing = self.config.hidden_size, layer.smoothing
        operand = (x if smoothing is None else x / smoothing.qkv).to(self._compute)
        if first_only:
            key_value = layer.key_value(operand)
            x = x[rows.first]
            query = layer.query(operand[rows.first])
        else:
            query, key_value = layer.qkv(operand).split((hidden, 2 * hidden), dim=1)
        attended = self._attend(query, key_value, rows, first_only)
        x = self._norm(x + layer.attention_output(attended), layer.attention_norm)
        operand = (x if smoothing is None else x / smoothing.ffn).to(self._compute)
        inner = self._activation(layer.ffn(operand))
        return self._norm(x + layer.ffn_output(inner), layer.output_norm)

    def _attend(self, query: torch.Tensor, key_value: torch.Tensor, rows: _Rows, first_only: bool) -> torch.Tensor:
        """Attention within each sequence, [queries, hidden]. `key_value` is [tokens, 2 * hidden]."""
        heads, width = self.config.num_heads, self.config.head_size
        sizes = [sequences * length for sequences, length in rows.spans]
        query_sizes = [sequences for sequences, _ in rows.spans] if first_only else sizes
        attended = []
        for (sequences, _), q, kv in zip(rows.spans, query.split(query_sizes), key_value.split(sizes), strict=True):
            k, v = kv.view(sequences, -1, 2, heads, width).permute(2, 0, 3, 1, 4).unbind()
            q = q.view(sequences, -1, heads, width).transpose(1, 2)
            attended.append(self._attention(q, k, v, rows.mask).transpose(1, 2).reshape(-1, heads * width))
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def _attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Attention of sequences of one length, [sequences, heads, queries, width]."""
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def _norm(self, x: torch.Tensor, weights: WeightAndBias) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], *weights, eps=self.config.layer_norm_eps)

    def _pack(self, layer: LayerWeights, smoothing: Smoothing | None) -> _Layer:
        hidden = self.config.hidden_size
        qkv = torch.cat((layer.query_weight, layer.key_weight, layer.value_weight))
        ffn = layer.ffn_weight
        if smoothing is not None:
            qkv, ffn = qkv * smoothing.qkv, ffn * smoothing.ffn
        qkv_bias = torch.cat((layer.query_bias, layer.key_bias, layer.value_bias))
        return _Layer(
            qkv=self._linear(qkv, qkv_bias),
            query=self._linear(qkv[:hidden], qkv_bias[:hidden]),
            key_value=self._linear(qkv[hidden:], qkv_bias[hidden:]),
            attention_output=self._linear(layer.attention_output_weight, layer.attention_output_bias),
            attention_norm=self._norm_weights(layer.attention_norm_weight, layer.attention_norm_bias),
            ffn=self._linear(ffn, layer.ffn_bias),
            ffn_output=self._linear(layer.ffn_output_weight, layer.ffn_output_bias),
            output_norm=self._norm_weights(layer.output_norm_weight, layer.output_norm_bias),
            smoothing=smoothing,
        )

    def _linear(self, weight: torch.Tensor, bias: torch.Tensor) -> Linear:
        return self._make_linear(weight.detach().to(self._compute).contiguous(), bias.detach().to(self._compute))

    def _norm_weights(self, weight: torch.Tensor, bias: torch.Tensor) -> WeightAndBias:
        return weight.detach().to(self._accumulate), bias.detach().to(self._accumulate)

    def _packed_rows(self, lengths: IntArray) -> _Rows:
        return _Rows(spans_of(lengths), torch.from_numpy(np.cumsum(lengths) - lengths).to(self.device))


def tensors_mapped(
    value: Any, change: Callable[[torch.Tensor], torch.Tensor], done: dict[int, Any] | None = None
) -> Any:
    """`value` with `change` applied to its tensors. One that occurs several times is changed once (`done`, by id)."""
    done = {} if done is None else done
    if isinstance(value, dict):
        return {name: tensors_mapped(part, change, done) for name, part in value.items()}
    if isinstance(value, list):
        return [tensors_mapped(item, change, done) for item in value]
    if isinstance(value, tuple):
        return tuple(tensors_mapped(item, change, done) for item in value)
    if isinstance(value, partial):
        return partial(value.func, **tensors_mapped(value.keywords, change, done))
    if not isinstance(value, torch.Tensor | _Layer | Smoothing):
        return value
    if id(value) not in done:
        if isinstance(value, torch.Tensor):
            done[id(value)] = change(value)
        else:
            done[id(value)] = type(value)(**tensors_mapped(vars(value), change, done))
    return done[id(value)]


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """Keeps the requested dtypes even inside a caller's mixed-precision region."""
    kind = device.type
    # Only inside one: torch refuses the context, switched off or not, for a device whose package has no autocast.
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def _padded_rows(mask: torch.Tensor) -> _Rows:
    sequences, length = mask.shape
    first = torch.arange(sequences, device=mask.device) * length
    return _Rows([(sequences, length)], first, mask.bool()[:, None, None, :])


def _chunks(order: IntArray, lengths: IntArray, limit: int) -> list[IntArray]:
    """`order` cut into runs of about equally many tokens, at most `limit` (or one longer sequence)."""
    ends = np.cumsum(lengths[order])
    target = -(-ends[-1] // -(-ends[-1] // limit))
    chunks = []
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + target, side="right")))
        chunks.append(order[start:stop])
        start = stop
    return chunks
