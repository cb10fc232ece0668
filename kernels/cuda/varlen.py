"""Attention of packed batches in training: torch's variable-length kernel, if it supports the request."""

from __future__ import annotations

import torch

from ..packed import PackedBatch
from ..packed.attention import GroupedAttention
from .encoder import flash_attention
from .support import FLASH_DTYPES, why_no_flash_heads


class VarlenAttention:
    """One kernel for all sequences of a batch, forward and backward.

    torch's kernel has no dropout and computes only in bfloat16 and float16. Attention dropout, wider dtypes and odd
    heads take the groups of equal length that every device can compute.
    """

    def __init__(self, batch: PackedBatch) -> None:
        self._bounds, self._longest = batch.cu_seqlens, batch.max_seqlen
        self._grouped = GroupedAttention(batch.host_lengths)

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float = 0.0
    ) -> torch.Tensor:
        """See `backends.PackedAttention`."""
        if dropout or query.dtype not in FLASH_DTYPES or why_no_flash_heads(query.shape[-1]):
            return self._grouped(query, key, value, dropout)
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return flash_attention(q, k, v, self._bounds, self._bounds, self._longest, self._longest)[None]
