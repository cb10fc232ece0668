"""The frozen encoder in emulated Tenstorrent numerics: a card's features, computed without a card."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from ... import UserError
from ..packed.portable import ACTIVATIONS, HOST_CHUNK_TOKENS, Linear, PortableEncoder, _Rows, plain_linear
from ..weights import EncoderWeights, LayerWeights
from . import native
from .arithmetic import Arithmetic, ttnn_block_tiles
from .fast import FastWeight
from .formats import check_dtype, host_convert
from .linear import add, linear
from .ops import attention, layer_norm
from .unary import OF_ACTIVATION, unary

Norm = tuple[torch.Tensor, torch.Tensor]


class FrozenLinear:
    """y = x @ weight^T + bias with a frozen weight (out, in) stored as `weight_dtype`, in blocks along `out`.

    The stored layout is that of ttnn.linear, (in, out). Activations and results are bfloat16 values in x's dtype. Its
    blocks of K are those of a batch with as many rows as columns, so that features don't depend on the batch.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, arithmetic: Arithmetic, weight_dtype: str) -> None:
        if arithmetic.block_tiles is None:
            out_features, in_features = weight.shape
            tiles = ttnn_block_tiles(out_features, in_features, out_features, arithmetic.arch)
            arithmetic = replace(arithmetic, block_tiles=tiles)
        self._arithmetic = arithmetic
        self._in1 = host_convert(weight.detach().to(torch.float32).T.contiguous(), weight_dtype)
        self._bias = host_convert(bias.detach(), "bfloat16")
        self._fast: FastWeight | None = None
        if arithmetic.mode == "fast" and arithmetic.fp32_dest_acc_en:
            self._fast = FastWeight(self._in1, self._bias, arithmetic)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._fast is not None:
            return self._fast(x).to(x.dtype)
        return linear(x, self._in1, self._bias, self._arithmetic).to(x.dtype)


@dataclass(frozen=True)
class _TtLayer:
    """One layer's products, ready to be called, and the weights and biases of its norms."""

    query: Linear
    key_value: Linear
    attention_output: Linear
    attention_norm: Norm
    ffn: Linear
    ffn_output: Linear
    output_norm: Norm


class TtEncoder(PortableEncoder):
    """A frozen encoder in emulated numerics: ``encoder(batch)`` gives float32 features [sequences, hidden].

    Weights of linear layers are stored as `weight_dtype` (bfloat16, bfp_bf8, bfp_bf4), everything else and all
    activations as bfloat16. `arithmetic` says how products are computed, exactly or fast. Its fidelity applies to
    matrix products, while LayerNorm and softmax run at HiFi4 (ttnn's default for the former, an assumption for the
    latter). Exact mode computes on the host and gives the same bits for every batch, layout, order and number of
    threads. Operations in `float32` (linear, matmul, softmax, layer_norm, activation, add, embedding) are the host's
    own instead.

    Raises:
        UserError: The activation is not supported, or the dtype is unknown.
    """

    name = "tt-emulated"

    def __init__(
        self,
        weights: EncoderWeights,
        arithmetic: Arithmetic | None = None,
        weight_dtype: str = "bfloat16",
        chunk_tokens: int = HOST_CHUNK_TOKENS,
        float32: frozenset[str] = frozenset(),
    ) -> None:
        # Without the parent's __init__, which packs weights for torch's products. Only the splitting of batches is
        # shared.
        self.arithmetic = arithmetic or Arithmetic()
        self.weight_dtype = check_dtype(weight_dtype)
        self._float32 = float32
        left_out = f" without {' '.join(sorted(float32))}" if float32 else ""
        self.version = f"2 {self.arithmetic.label} {weight_dtype}{self._looped(weights)}{left_out}"
        self.config = weights.config
        if self.config.activation not in ACTIVATIONS:
            raise UserError(
                f"activation {self.config.activation!r} is not supported; TT emulation has {', '.join(ACTIVATIONS)}"
            )
        if chunk_tokens < 1:
            raise UserError(f"chunk_tokens is {chunk_tokens}; it must be at least 1")
        self.chunk_tokens = chunk_tokens
        self.exact = self.arithmetic.mode == "exact"
        self.batch_invariant = self.exact and not float32
        weights = weights.to("cpu") if self.exact else weights
        self.device = weights.device
        self._norm_arithmetic = replace(self.arithmetic, math_fidelity="hifi4")
        # Always bfloat16 values, stored as float32 tensors if the products need those.
        self._dtype = torch.float32 if self.exact or float32 else self.arithmetic.gemm_dtype
        self._word_embeddings = self._weight("embedding", weights.word_embeddings)
        self._position_embeddings = self._weight("embedding", weights.position_embeddings)
        self._token_type_embeddings = self._weight("embedding", weights.token_type_embeddings)
        self._embedding_norm = self._norm_weights(weights.embedding_norm_weight, weights.embedding_norm_bias)
        self._tt_projection: Linear | None = None
        if weights.projection_weight is not None and weights.projection_bias is not None:
            self._tt_projection = self._product(weights.projection_weight, weights.projection_bias)
        layers: list[Any] = [self._tt_layer(layer) for layer in weights.layers]
        self._layers = [layers[index] for index in self.config.weights_of_layer]

    def _looped(self, weights: EncoderWeights) -> str:
        """Marks a bfloat16 Dst that fast mode rounds in a loop. The exact unit, if available, gives other bits."""
        rounds = not self.arithmetic.fp32_dest_acc_en and self.arithmetic.mode == "fast"
        return " looped" if rounds and not native.serves(weights.word_embeddings) else ""

    def _embed(self, ids: torch.Tensor, positions: torch.Tensor, types: torch.Tensor | None) -> torch.Tensor:
        """The first layer's input, [tokens, hidden]. Looking up a row is an exact copy."""
        kinds = torch.zeros_like(ids) if types is None else types
        x = functional.embedding(ids, self._word_embeddings)
        x = self._add(x, functional.embedding(kinds, self._token_type_embeddings))
        x = self._add(x, functional.embedding(positions, self._position_embeddings))
        x = self._norm(x, self._embedding_norm)
        return x if self._tt_projection is None else self._tt_projection(x)

    def _apply_layer(self, layer: Any, x: torch.Tensor, rows: _Rows, first_only: bool = False) -> torch.Tensor:
        """One layer, from [tokens, hidden] to the same. With `first_only`, only each sequence's first row."""
        key_value = layer.key_value(x)
        if first_only:
            x = x[rows.first]
        attended = self._attend(layer.query(x), key_value, rows, first_only)
        x = self._norm(self._add(x, layer.attention_output(attended)), layer.attention_norm)
        inner = self._activate(layer.ffn(x))
        return self._norm(self._add(x, layer.ffn_output(inner)), layer.output_norm)

    def _attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """A padded batch is computed sequence by sequence without padding.

        A masked score has the exponential 0, and zeros change no sum, so real tokens get what a card gives them.
        """
        if "matmul" not in self._float32:
            q, k, v = self._read(q), self._read(k), self._read(v)
        if mask is None:
            return attention(q, k, v, self.arithmetic, float32=self._float32)
        out = q.new_zeros(q.shape)
        for index, length in enumerate(mask.sum(dim=-1).flatten().tolist()):
            real = slice(0, min(length, q.shape[2]))
            parts = q[index, :, real], k[index, :, :length], v[index, :, :length]
            out[index, :, real] = attention(*parts, self.arithmetic, float32=self._float32)
        return out

    def _activate(self, x: torch.Tensor) -> torch.Tensor:
        name = self.config.activation
        if "activation" in self._float32:
            return ACTIVATIONS[name](x)
        x = self._read(x)
        if self.exact and name in OF_ACTIVATION:
            return unary(OF_ACTIVATION[name], x)
        return self._stored(ACTIVATIONS[name](x))

    def _add(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if "add" in self._float32:
            return a + b
        a, b = self._read(a), self._read(b)
        return add(a, b, arch=self.arithmetic.arch) if self.exact else self._stored(a + b)

    def _norm(self, x: torch.Tensor, weights: Norm) -> torch.Tensor:
        if "layer_norm" in self._float32:
            return functional.layer_norm(x, x.shape[-1:], *weights, self.config.layer_norm_eps)
        return layer_norm(self._read(x), *weights, self.config.layer_norm_eps, self._norm_arithmetic)

    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        return self._stored(x)

    def _stored(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == self._dtype == torch.bfloat16:
            return x
        return host_convert(x.detach(), "bfloat16").to(self._dtype)

    def _read(self, x: torch.Tensor) -> torch.Tensor:
        """`x` as an operation of the device reads it. Only float32 operations leave values that aren't bfloat16."""
        return self._stored(x) if self._float32 else x

    def _weight(self, operation: str, weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().to(torch.float32) if operation in self._float32 else self._stored(weight)

    def _norm_weights(self, weight: torch.Tensor, bias: torch.Tensor) -> Norm:
        return self._weight("layer_norm", weight), self._weight("layer_norm", bias)

    def _product(self, weight: torch.Tensor, bias: torch.Tensor) -> Linear:
        if "linear" in self._float32:
            return plain_linear(weight.detach().to(torch.float32), bias.detach().to(torch.float32))
        product = FrozenLinear(weight, bias, self.arithmetic, self.weight_dtype)
        return (lambda x: product(self._read(x))) if self._float32 else product

    def _tt_layer(self, layer: LayerWeights) -> _TtLayer:
        return _TtLayer(
            query=self._product(layer.query_weight, layer.query_bias),
            key_value=self._product(
                torch.cat((layer.key_weight, layer.value_weight)), torch.cat((layer.key_bias, layer.value_bias))
            ),
            attention_output=self._product(layer.attention_output_weight, layer.attention_output_bias),
            attention_norm=self._norm_weights(layer.attention_norm_weight, layer.attention_norm_bias),
            ffn=self._product(layer.ffn_weight, layer.ffn_bias),
            ffn_output=self._product(layer.ffn_output_weight, layer.ffn_output_bias),
            output_norm=self._norm_weights(layer.output_norm_weight, layer.output_norm_bias),
        )
