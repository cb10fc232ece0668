"""Attention of packed batches in training, with one launch a layer: torch's variable-length kernel, or padded."""

from __future__ import annotations

from functools import cached_property

import torch
from torch.nn import functional

from ..packed import PackedBatch
from .flash import flash_attention
from .support import FLASH_DTYPES, why_no_flash_heads


class VarlenAttention:
    """One kernel for all sequences of a batch, forward and backward.

    torch's variable-length kernel has no dropout and computes only in bfloat16 and float16. For attention dropout,
    wider dtypes and odd heads, the sequences are padded to the longest, in the attention alone.
    """

    def __init__(self, batch: PackedBatch) -> None:
        self._batch = batch

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float = 0.0
    ) -> torch.Tensor:
        """See `backends.PackedAttention`."""
        if dropout or query.dtype not in FLASH_DTYPES or why_no_flash_heads(query.shape[-1]):
            return self._padded(query, key, value, dropout)
        bounds, longest = self._batch.cu_seqlens, self._batch.max_seqlen
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return flash_attention(q, k, v, bounds, bounds, longest, longest)[None]

    def _padded(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float) -> torch.Tensor:
        sequences, longest = self._batch.num_sequences, self._batch.max_seqlen
        places, real = self._padding

        def spread(tensor: torch.Tensor) -> torch.Tensor:
            rows = tensor[0].transpose(0, 1)
            wide = rows.new_zeros(sequences * longest, *rows.shape[1:]).index_copy(0, places, rows)
            return wide.unflatten(0, (sequences, longest)).transpose(1, 2)

        q, k, v = map(spread, (query, key, value))
        attended = functional.scaled_dot_product_attention(q, k, v, real, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(0, 1).index_select(0, places)[None]

    @cached_property
    def _padding(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the tokens stand in a padded batch, and which of its keys are real, bool [sequences, 1, 1, longest]."""
        token = torch.arange(self._batch.max_seqlen, device=self._batch.device)
        return self._batch.places(), (token < self._batch.lengths[:, None])[:, None, None]
