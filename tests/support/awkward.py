"""Tensors and weights as nobody would choose them: on odd addresses, or with a NaN somewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from isotrain.kernels.packed import PackedBatch
from isotrain.kernels.weights import EncoderWeights

# One tensor of each kind of operation: a NaN in any of them must reach every feature of a text that holds token 7.
NAN_PLACES = ("word_embeddings", "key_weight", "value_bias", "attention_norm_weight", "ffn_weight", "output_norm_bias")


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, contiguous, one element behind the beginning of their memory."""
    moved = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    assert moved.is_contiguous()
    assert moved.data_ptr() % 16
    return moved.copy_(tensor)


def unaligned_batch(batch: PackedBatch) -> PackedBatch:
    """`batch` (on the host, with token types) with every tensor unaligned."""
    names = ("input_ids", "cu_seqlens", "position_ids", "token_type_ids")
    tensors: dict[str, Any] = {name: unaligned(getattr(batch, name)) for name in names}
    return replace(batch, **tensors)


def with_nan(weights: EncoderWeights, place: str) -> EncoderWeights:
    """The weights with one NaN in each tensor called `place`, in row 7."""

    def spoil(name: str, tensor: torch.Tensor) -> torch.Tensor:
        spoilt = tensor.clone()
        if name.rpartition(".")[2] == place:
            spoilt[(7, *[0] * (tensor.dim() - 1))] = float("nan")
        return spoilt

    return weights.mapped(spoil)
