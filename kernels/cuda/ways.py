"""The ways to compute the parts of the GPU encoder, each by itself: for measuring which is fastest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from ..packed.attention import GroupedAttention
from ..packed.batch import IntArray
from ..packed.portable import ACTIVATIONS
from .flash import flash_attention

Ways = dict[str, Callable[[], torch.Tensor]]

# What cuBLASLt computes behind a product.
EPILOGUES = ("gelu_new", "gelu_pytorch_tanh")


def attention_ways(qkv: torch.Tensor, lengths: IntArray, heads: int) -> Ways:
    """Attention within sequences of `lengths`, int64 [B], whose queries, keys and values are [tokens, 3 * hidden].

    Each way returns [tokens, hidden].
    """
    query, key, value = qkv.chunk(3, dim=1)
    ends = torch.from_numpy(lengths).to(qkv.device).cumsum(0)
    bounds = functional.pad(ends, (1, 0)).int()
    sequence = torch.searchsorted(ends, torch.arange(len(qkv), device=qkv.device), right=True)
    first_keys, last_keys = bounds[sequence], bounds[sequence + 1]
    longest = int(lengths.max())

    def triton() -> torch.Tensor:
        from . import triton_kernels

        return triton_kernels.attention(query, key, value, first_keys, last_keys, heads)

    def flash() -> torch.Tensor:
        q, k, v = (part.unflatten(1, (heads, -1)) for part in (query, key, value))
        return flash_attention(q, k, v, bounds, bounds, longest, longest).flatten(1)

    return {"triton": triton, "flash": flash}


def exact_attention(qkv: torch.Tensor, lengths: IntArray, heads: int) -> torch.Tensor:
    """The result of `attention_ways` in float32, by torch's operator. `lengths` are in ascending order."""
    parts = (part.float().unflatten(1, (heads, -1)).transpose(0, 1)[None] for part in qkv.chunk(3, dim=1))
    return GroupedAttention(lengths)(*parts)[0].flatten(1)


def activation_ways(activation: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Ways:
    """A linear layer from [rows, in] to [rows, out] and its activation, since some ways are a part of the product."""

    def triton() -> torch.Tensor:
        from . import triton_kernels

        product = functional.linear(x, weight)
        return triton_kernels.bias_activation_(product, bias, triton_kernels.ACTIVATIONS[activation])

    ways: Ways = {"triton": triton, "torch": lambda: ACTIVATIONS[activation](functional.linear(x, weight, bias))}
    if activation in EPILOGUES:
        ways["epilogue"] = lambda: torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
    return ways


def exact_activation(activation: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The result of `activation_ways` in float32."""
    return ACTIVATIONS[activation](functional.linear(x.float(), weight.float(), bias.float()))
