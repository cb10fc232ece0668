"""Attention within the sequences of a packed batch with torch's own operator, differentiable and without padding."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from .batch import IntArray


def spans_of(lengths: IntArray) -> list[tuple[int, int]]:
    """(sequences, length) of each run of neighbouring sequences of equal length, covering all of them in order."""
    edges = np.flatnonzero(np.diff(lengths)) + 1
    bounds = np.concatenate(([0], edges, [len(lengths)]))
    return list(zip(np.diff(bounds).tolist(), lengths[bounds[:-1]].tolist(), strict=True))


class GroupedAttention:
    """Attention of every head within each sequence. Adjacent sequences of equal length are processed together.

    `lengths` are the tokens of each sequence in the batch's order, int64 numpy [B]. Sorted, they form the fewest
    groups.
    """

    def __init__(self, lengths: IntArray) -> None:
        self._spans = spans_of(lengths)
        self._sizes = [sequences * length for sequences, length in self._spans]

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float = 0.0
    ) -> torch.Tensor:
        """See `backends.PackedAttention`."""
        # One split has one concatenation as its backward. A slice per group would need a tensor of all tokens for each.
        parts = (tensor.split(self._sizes, dim=2) for tensor in (query, key, value))
        attended = []
        for span, *group in zip(self._spans, *parts, strict=True):
            q, k, v = (part[0].unflatten(1, span).transpose(0, 1) for part in group)
            result = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
            attended.append(result.transpose(1, 2).flatten(0, 1))
        return torch.cat(attended)[None]
