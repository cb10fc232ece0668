"""Attention of trained modules by torch's own operators, and within the sequences of a packed batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from .batch import IntArray

Attention = Callable[..., torch.Tensor]

# Of longer sequences, the probabilities that `unfused_attention` keeps for its gradient take too much memory.
LONGEST_UNFUSED = 256


def spans_of(lengths: IntArray) -> list[tuple[int, int]]:
    """(sequences, length) of each run of neighbouring sequences of equal length, covering all of them in order."""
    edges = np.flatnonzero(np.diff(lengths)) + 1
    bounds = np.concatenate(([0], edges, [len(lengths)]))
    return list(zip(np.diff(bounds).tolist(), lengths[bounds[:-1]].tolist(), strict=True))


def fused_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None, dropout: float = 0.0
) -> torch.Tensor:
    """Attention by torch's own operator.

    Args:
        query, key, value: [sequences, heads, length, width].
        mask: bool, of a shape that broadcasts to [sequences, heads, length, length]: which keys a query attends to.
        dropout: The share of probabilities that is dropped; the others are scaled up.

    Returns:
        [sequences, heads, length, width].
    """
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def unfused_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None, dropout: float = 0.0
) -> torch.Tensor:
    """`fused_attention` by two products and a softmax, each rounded to the dtype of `query`.

    With its gradient, torch's operator takes 2 to 4 times as long on a CPU in bfloat16, from 12 to 512 tokens.
    """
    scores = (query * (1.0 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2)
    if mask is not None:
        scores += torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -math.inf)
    probabilities = scores.softmax(dim=-1)
    if dropout:
        probabilities = functional.dropout(probabilities, dropout)
    return probabilities @ value


def host_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None, dropout: float = 0.0
) -> torch.Tensor:
    """The faster of the two on a CPU, unless that keeps too much. Without a gradient, that is torch's."""
    differentiated = query.requires_grad and torch.is_grad_enabled()
    unfused = differentiated and query.dtype == torch.bfloat16 and query.shape[-2] <= LONGEST_UNFUSED
    return (unfused_attention if unfused else fused_attention)(query, key, value, mask, dropout)


class GroupedAttention:
    """Attention of every head within each sequence. Adjacent sequences of equal length are processed together.

    Args:
        lengths: The tokens of each sequence in the batch's order, int64 numpy [B]. Sorted, they form the fewest groups.
        attention: That of sequences of one length; by default torch's.
    """

    def __init__(self, lengths: IntArray, attention: Attention | None = None) -> None:
        self._attention = attention or fused_attention
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
            result = self._attention(q, k, v, dropout=dropout)
            attended.append(result.transpose(1, 2).flatten(0, 1))
        return torch.cat(attended)[None]
