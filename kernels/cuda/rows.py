"""What the GPU encoder computes on: the rows of a batch and the keys that each row may see, as device tensors.

Nothing here waits for a device. No value is read and no size depends on one, so that a graph can be captured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..packed.batch import PackedBatch, PaddedBatch


@dataclass(frozen=True, eq=False)
class TokenRows:
    """T token rows of B sequences, on the device.

    Attributes:
        input_ids: int64 [T], like `position_ids` and `token_type_ids` (None means all 0).
        cu_seqlens: int32 [B + 1]. Sequence b is the rows ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``; it may be empty.
            Rows behind the last sequence are padding: they see no key, and no row sees them.
        real_lengths: int32 [B], the number of a sequence's rows, from its first, that are keys. None means all.
        max_length: No sequence has more rows.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    token_type_ids: torch.Tensor | None
    cu_seqlens: torch.Tensor
    real_lengths: torch.Tensor | None
    max_length: int

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[0]

    @property
    def num_sequences(self) -> int:
        return self.cu_seqlens.shape[0] - 1


def key_ranges(rows: TokenRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Two int32 [T]: row i sees the keys from the first up to (not including) the second. Padding rows see none."""
    bounds = rows.cu_seqlens
    row = torch.arange(rows.num_tokens, dtype=torch.int32, device=bounds.device)
    # B for padding rows. Their start and end are both the last bound.
    sequence = torch.searchsorted(bounds[1:].contiguous(), row, right=True)
    start = bounds[sequence]
    if rows.real_lengths is None:
        return start, bounds[(sequence + 1).clamp(max=rows.num_sequences)]
    lengths = torch.nn.functional.pad(rows.real_lengths, (0, 1))
    return start, start + lengths[sequence]


def first_rows(rows: TokenRows) -> torch.Tensor:
    """int64 [B], each sequence's first row. For an empty sequence it is any existing row, with a meaningless result."""
    return rows.cu_seqlens[:-1].clamp(max=rows.num_tokens - 1).to(torch.int64)


def split(batch: PackedBatch | PaddedBatch, chunk_tokens: int) -> Iterator[TokenRows]:
    """The batch's sequences in order, in chunks of at most `chunk_tokens` rows (or one longer sequence).

    Padding counts as rows: a padded batch is computed with its padding.
    """
    yield from (
        _split_padded(batch, chunk_tokens) if isinstance(batch, PaddedBatch) else _split_packed(batch, chunk_tokens)
    )


def _split_packed(batch: PackedBatch, chunk_tokens: int) -> Iterator[TokenRows]:
    bounds = np.concatenate(([0], np.cumsum(batch.host_lengths)))
    cu_seqlens = batch.cu_seqlens.to(torch.int32)
    start = 0
    while start < batch.num_sequences:
        limit = bounds[start] + chunk_tokens
        stop = max(start + 1, int(np.searchsorted(bounds, limit, side="right")) - 1)
        tokens = slice(int(bounds[start]), int(bounds[stop]))
        yield TokenRows(
            input_ids=batch.input_ids[tokens],
            position_ids=batch.position_ids[tokens],
            token_type_ids=None if batch.token_type_ids is None else batch.token_type_ids[tokens],
            cu_seqlens=cu_seqlens[start : stop + 1] - tokens.start if tokens.start else cu_seqlens[: stop + 1],
            real_lengths=None,
            max_length=int(batch.host_lengths[start:stop].max()),
        )
        start = stop


def _split_padded(batch: PaddedBatch, chunk_tokens: int) -> Iterator[TokenRows]:
    length = batch.input_ids.shape[1]
    step = max(1, chunk_tokens // length)
    position = torch.arange(length, device=batch.device)
    for start in range(0, batch.num_sequences, step):
        ids, mask = batch.input_ids[start : start + step], batch.attention_mask[start : start + step]
        types = batch.token_type_ids
        # Lengths describe padding on the right completely, and no other mask. On the host another mask is an error.
        # Here it can't be read, so a position that no model has gives NaN instead of a wrong number.
        usable = (mask[:, :1] == 1) & ((mask[:, 1:] == 0) | (mask[:, 1:] == mask[:, :-1])).all(dim=1, keepdim=True)
        yield TokenRows(
            input_ids=ids.flatten(),
            position_ids=torch.where(usable, position, -1).flatten(),
            token_type_ids=None if types is None else types[start : start + step].flatten(),
            cu_seqlens=torch.arange(ids.shape[0] + 1, dtype=torch.int32, device=batch.device) * length,
            real_lengths=mask.sum(dim=1, dtype=torch.int32),
            max_length=length,
        )
