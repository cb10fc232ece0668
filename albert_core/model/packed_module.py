"""transformers' own ALBERT and BERT on packed batches: one row of all tokens, and attention within each sequence.

All other parts of these models work on one token at a time, so a row of concatenated sequences needs no padding and no
mask. The sequence bounds reach the attention as a keyword argument that the modules pass on. No state is kept outside
the call. Threads therefore don't disturb each other, and a layer that gradient checkpointing computes again sees the
same batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ...backends import Backend, PackedAttention
from ...kernels.packed import PackedBatch

if TYPE_CHECKING:
    from torch import nn

# The name under which transformers finds the attention function below.
NAME = "isotrain_packed"


def take_packed(encoder: Any) -> None:
    """Prepares a transformers AlbertModel or BertModel for `packed_states`. Its own calls don't change."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    # The same values each time: entries of tables that transformers reads by the name in a model's configuration.
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    encoder.set_attn_implementation(NAME)


def packed_states(encoder: nn.Module, batch: PackedBatch, backend: Backend) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the last hidden states of a packed batch of B sequences, where the longest has L tokens.

    Only the result is padded. Code that reads single tokens, as heads do, uses it like a padded batch's states.

    Args:
        encoder: A module that `take_packed` has prepared.

    Returns:
        States [B, L, hidden], 0 at padding, and the mask, int64 [B, L], 1 on real tokens.
    """
    # Sorted by length, so that sequences of equal length are adjacent and attention processes them together.
    ordered, places = batch.by_length()
    types = ordered.token_type_ids
    output = encoder(
        input_ids=ordered.input_ids[None],
        position_ids=ordered.position_ids[None],
        token_type_ids=None if types is None else types[None],
        packed_attention=backend.packed_attention(ordered),
    )
    return padded(output.last_hidden_state[0], places, batch)


def padded(states: torch.Tensor, places: torch.Tensor, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """What `packed_states` returns, from states [T, hidden] and their places in it, int64 [T]."""
    sequences, longest = batch.num_sequences, batch.max_seqlen
    rows = states.new_zeros(sequences * longest, states.shape[1]).index_copy(0, places, states)
    mask = (torch.arange(longest, device=states.device) < batch.lengths[:, None]).long()
    return rows.view(sequences, longest, -1), mask


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed_attention: PackedAttention | None = None,
    padded_attention: Callable[..., torch.Tensor] | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of one layer as transformers calls it: [B, L, heads, width] from three [B, heads, L, width].

    A packed batch is one row of all its tokens. Without an attention of the backend, it is transformers' default.
    """
    if padded_attention is not None:
        attended = padded_attention(query, key, value, attention_mask, dropout=dropout)
        return attended.transpose(1, 2).contiguous(), None
    if packed_attention is None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return plain(module, query, key, value, attention_mask, dropout=dropout, **others)
    return packed_attention(query, key, value, dropout), None
