"""The packed frozen encoder for GPUs: torch's matrix products, and Triton kernels for everything between them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from ... import UserError
from ..packed import PackedBatch, PaddedBatch
from ..packed.portable import ACTIVATIONS, autocast_off
from ..weights import EncoderWeights, LayerWeights
from .flash import flash_attention
from .rows import TokenRows, first_rows, key_ranges, split
from .support import Operators, why_no_flash, why_not

# Rows processed at once: enough to keep every multiprocessor busy, few enough to limit memory.
CHUNK_TOKENS = 65536

Linear = tuple[torch.Tensor, torch.Tensor]
Forward = Callable[[TokenRows], torch.Tensor]


@dataclass(frozen=True)
class _Layer:
    """One layer's weights: norms in float32, the rest in the compute dtype. Weights of products are (out, in)."""

    qkv: Linear
    attention_output: Linear
    attention_norm: Linear
    ffn: Linear
    ffn_output: Linear
    output_norm: Linear


class PackedGpuEncoder:
    """A frozen encoder: ``encoder(batch)`` gives float32 features [sequences, hidden] on the weights' device.

    Products have `compute_dtype` operands and float32 sums. LayerNorm and softmax are float32, and so is the residual
    stream unless `operators` say otherwise. `runner` executes the forward pass of each chunk (a `BucketRunner` replays
    captured graphs), by default directly. Nothing is read back, so the host never waits for a batch that is on the
    device already. Tensors of `weights` are shared if they already fit, so they must not change afterwards.

    A batch on the host is checked before anything runs. In a batch on the device, a sequence with an id, position or
    token type outside the model's range gets NaN features.

    Raises:
        UserError: These kernels don't support the weights, dtypes or operators.
    """

    skips_padding = False
    batch_invariant = False

    def __init__(
        self,
        weights: EncoderWeights,
        compute_dtype: torch.dtype = torch.bfloat16,
        operators: Operators | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
        runner: Callable[[Forward], Forward] = lambda forward: forward,
    ) -> None:
        self.config = weights.config
        self.device = weights.device
        operators = operators or Operators()
        reason = why_not(self.config, compute_dtype, torch.float32)
        if not reason and operators.flash:
            reason = why_no_flash(self.config, compute_dtype)
        if reason:
            raise UserError(f"the GPU kernels can't run this encoder: {reason}; use kernel portable")
        if chunk_tokens < 1:
            raise UserError(f"chunk_tokens is {chunk_tokens}; it must be at least 1")
        from . import triton_kernels

        self._triton = triton_kernels
        self._activation = triton_kernels.ACTIVATIONS[self.config.activation]
        self._compute = compute_dtype
        self._word_embeddings = weights.word_embeddings
        self._position_embeddings = weights.position_embeddings.float()
        self._token_type_embeddings = weights.token_type_embeddings.float()
        self._embedding_norm = _norm(weights.embedding_norm_weight, weights.embedding_norm_bias)
        self._projection: Linear | None = None
        if weights.projection_weight is not None and weights.projection_bias is not None:
            self._projection = self._linear(weights.projection_weight, weights.projection_bias)
        layers = [self._pack(layer) for layer in weights.layers]
        self._layers = [layers[index] for index in self.config.weights_of_layer]
        self._set(operators, chunk_tokens, runner)

    def changed(
        self,
        operators: Operators,
        chunk_tokens: int,
        runner: Callable[[Forward], Forward] = lambda forward: forward,
    ) -> PackedGpuEncoder:
        """This encoder with other operators, which must be possible, chunks and runner. It shares the weights."""
        other = copy.copy(self)
        other._set(operators, chunk_tokens, runner)
        return other

    def _set(self, operators: Operators, chunk_tokens: int, runner: Callable[[Forward], Forward]) -> None:
        self.operators, self.chunk_tokens = operators, chunk_tokens
        self.name = "triton+flash" if operators.flash_from is not None else operators.attention
        # All else that decides the bits.
        others = operators.differences()
        if chunk_tokens != CHUNK_TOKENS:
            others.append(f"chunks of {chunk_tokens} tokens")
        self.version = ", ".join(("1", *others))
        self._run = runner(self.forward)

    @torch.no_grad()
    def __call__(self, batch: PackedBatch | PaddedBatch) -> torch.Tensor:
        """Features, float32 [sequences, hidden]: each sequence's first row after the last layer.

        Raises:
            UserError: The batch doesn't fit the encoder (see the batch's `validate`).
        """
        batch.validate(self.config)
        batch = batch.to(self.device)
        with autocast_off(self.device):
            features = [self._run(rows) for rows in split(batch, self.chunk_tokens)]
        return features[0] if len(features) == 1 else torch.cat(features)

    @torch.no_grad()
    def forward(self, rows: TokenRows) -> torch.Tensor:
        """One chunk's features, float32 [sequences, hidden]. Reads nothing back, so that a graph can capture it."""
        starts, ends = key_ranges(rows)
        first = first_rows(rows)
        x, low = self._embed(rows)
        hidden = self.config.hidden_size
        for layer in self._layers[:-1]:
            x, low = self._apply_layer(layer, x, low, starts, ends, rows)
        layer = self._layers[-1]
        weight, bias = layer.qkv
        key, value = functional.linear(low, weight[hidden:], bias[hidden:]).split(hidden, dim=1)
        query = functional.linear(low[first], weight[:hidden], bias[:hidden])
        attended = self._attend(query, key, value, starts[first], ends[first], rows, first_only=True)
        return self._finish(layer, x[first].float(), attended)[0]

    @torch.no_grad()
    def layer_states(
        self, batch: PackedBatch | PaddedBatch, given: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """See `backends.FrozenEncoder`; float32."""
        batch.validate(self.config)
        batch = batch.to(self.device)
        shape = (*batch.input_ids.shape, self.config.hidden_size)
        # One chunk of any size, because `given` has tensors of the whole batch.
        (rows,) = split(batch, max(self.chunk_tokens, batch.input_ids.numel()))
        starts, ends = key_ranges(rows)
        states = []
        with autocast_off(self.device):
            if given is None:
                x, low = self._embed(rows)
                states.append(x.float())
            for index, layer in enumerate(self._layers):
                if given is not None:
                    x, low = self._stream(given[index].to(self.device, torch.float32).reshape(-1, shape[-1]))
                x, low = self._apply_layer(layer, x, low, starts, ends, rows)
                states.append(x.float())
        return [state.view(shape) for state in states]

    def _apply_layer(
        self,
        layer: _Layer,
        x: torch.Tensor,
        low: torch.Tensor,
        starts: torch.Tensor,
        ends: torch.Tensor,
        rows: TokenRows,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer for all rows: the residual stream in its dtype and in the compute dtype."""
        query, key, value = functional.linear(low, *layer.qkv).split(self.config.hidden_size, dim=1)
        return self._finish(layer, x, self._attend(query, key, value, starts, ends, rows))

    def _finish(self, layer: _Layer, x: torch.Tensor, attended: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer after attention: the residual stream in its dtype and in the compute dtype."""
        weight, bias = layer.attention_output
        x, low = self._add_norm(x, functional.linear(attended, weight), bias, layer.attention_norm)
        inner = self._feed_forward(low, layer.ffn)
        weight, bias = layer.ffn_output
        return self._add_norm(x, functional.linear(inner, weight), bias, layer.output_norm)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        ends: torch.Tensor,
        rows: TokenRows,
        first_only: bool = False,
    ) -> torch.Tensor:
        least = self.operators.flash_from
        long = least is not None and rows.num_tokens >= least * rows.num_sequences
        # Flash attention can't hide keys from a sequence's rows, so padded batches use our kernel.
        if (self.operators.attention == "flash" or long) and rows.real_lengths is None:
            return self._flash(query, key, value, rows, first_only)
        tile = self._triton.FIRST_ROWS_PER_TILE if first_only else self._triton.ROWS_PER_TILE
        return self._triton.attention(query, key, value, starts, ends, self.config.num_heads, tile)

    def _flash(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: TokenRows, first_only: bool
    ) -> torch.Tensor:
        heads, bounds = self.config.num_heads, rows.cu_seqlens
        query_bounds, longest = bounds, rows.max_length
        if first_only:
            query_bounds, longest = torch.arange(len(bounds), dtype=torch.int32, device=bounds.device), 1
        q, k, v = (part.unflatten(1, (heads, -1)) for part in (query, key, value))
        return flash_attention(q, k, v, query_bounds, bounds, longest, rows.max_length).flatten(1)

    def _add_norm(
        self, residual: torch.Tensor, update: torch.Tensor, bias: torch.Tensor, norm: Linear
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.operators.norm == "triton":
            return self._triton.add_norm(residual, update, bias, *norm, self.config.layer_norm_eps)
        summed = residual.float() + update + bias
        x = functional.layer_norm(summed, norm[0].shape, *norm, eps=self.config.layer_norm_eps)
        return x.to(residual.dtype), x.to(self._compute)

    def _stream(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream, given in float32: in its dtype and in the compute dtype."""
        low = x.to(self._compute)
        return (low if self.operators.residual == "compute" else x), low

    def _feed_forward(self, low: torch.Tensor, ffn: Linear) -> torch.Tensor:
        weight, bias = ffn
        operator = self.operators.activation
        if operator == "epilogue" and self._activation == "gelu_tanh":
            return torch._addmm_activation(bias, low, weight.t(), use_gelu=True)
        if operator == "torch":
            return ACTIVATIONS[self.config.activation](functional.linear(low, weight, bias))
        return self._triton.bias_activation_(functional.linear(low, weight), bias, self._activation)

    def _embed(self, rows: TokenRows) -> tuple[torch.Tensor, torch.Tensor]:
        """The first layer's input as residual stream: in its dtype and in the compute dtype."""
        ids, positions, types = rows.input_ids, rows.position_ids, rows.token_type_ids
        outside = _outside(ids, self._word_embeddings) | _outside(positions, self._position_embeddings)
        # A lookup outside the table would make the GPU unusable for the process. A clamped, marked one ends in NaN.
        x = _lookup(ids, self._word_embeddings).float() + _lookup(positions, self._position_embeddings)
        if types is None:
            x = x + self._token_type_embeddings[0]
        else:
            outside = outside | _outside(types, self._token_type_embeddings)
            x = x + _lookup(types, self._token_type_embeddings)
        x = functional.layer_norm(x, x.shape[-1:], *self._embedding_norm, eps=self.config.layer_norm_eps)
        x = x.masked_fill(outside[:, None], torch.nan)
        if self._projection is not None:
            x = functional.linear(x.to(self._compute), *self._projection).float()
        return self._stream(x)

    def _pack(self, layer: LayerWeights) -> _Layer:
        return _Layer(
            qkv=self._linear(
                torch.cat((layer.query_weight, layer.key_weight, layer.value_weight)),
                torch.cat((layer.query_bias, layer.key_bias, layer.value_bias)),
            ),
            attention_output=self._linear(layer.attention_output_weight, layer.attention_output_bias),
            attention_norm=_norm(layer.attention_norm_weight, layer.attention_norm_bias),
            ffn=self._linear(layer.ffn_weight, layer.ffn_bias),
            ffn_output=self._linear(layer.ffn_output_weight, layer.ffn_output_bias),
            output_norm=_norm(layer.output_norm_weight, layer.output_norm_bias),
        )

    def _linear(self, weight: torch.Tensor, bias: torch.Tensor) -> Linear:
        return weight.detach().to(self._compute).contiguous(), bias.detach().to(self._compute).contiguous()


def _outside(indices: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return (indices < 0) | (indices >= table.shape[0])


def _lookup(indices: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return functional.embedding(indices.clamp(0, table.shape[0] - 1), table)


def _norm(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
    return weight.detach().float().contiguous(), bias.detach().float().contiguous()
