"""transformers' own ALBERT and BERT on packed batches: one row of all tokens, and attention that keeps to sequences.

Everything else in these models looks at one token at a time, so a row of sequences end to end needs no padding and no
mask. What belongs together reaches the attention as a keyword argument that the modules hand down to it: no state
outside the call, so threads don't disturb each other and a layer that is computed again (gradient checkpointing) sees
the same batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...backends import Backend, PackedAttention
from ...kernels.packed import PackedBatch
from ...kernels.packed.batch import flat_token_index

if TYPE_CHECKING:
    from torch import nn

# What transformers calls the attention function below.
NAME = "isotrain_packed"


def take_packed(encoder: Any) -> None:
    """Makes a transformers AlbertModel or BertModel fit for `packed_states`; its own calls stay what they were."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    # The same each time: names in tables that transformers reads by a model's configuration.
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    encoder.set_attn_implementation(NAME)


def packed_states(encoder: nn.Module, batch: PackedBatch, backend: Backend) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden states [B, L, hidden] of a packed batch's B sequences, L tokens the longest, and the mask, int64
    [B, L], 1 on real tokens; all other states are 0.

    `encoder` is one that `take_packed` was called with. Only the result is padded: what reads single tokens of it,
    as heads do, works on it as on a padded batch's.
    """
    # In order of length, sequences of equal length are neighbours, which attention takes together.
    order = np.argsort(batch.host_lengths, kind="stable")
    ordered = batch.select(order)
    types = ordered.token_type_ids
    output = encoder(
        input_ids=ordered.input_ids[None],
        position_ids=ordered.position_ids[None],
        token_type_ids=None if types is None else types[None],
        packed_attention=backend.packed_attention(ordered),
    )
    states = output.last_hidden_state[0]
    sequences, longest = batch.num_sequences, batch.max_seqlen
    places = torch.from_numpy(flat_token_index(order * longest, ordered.host_lengths)).to(states.device)
    padded = states.new_zeros(sequences * longest, states.shape[1]).index_copy(0, places, states)
    mask = (torch.arange(longest, device=states.device) < batch.lengths[:, None]).long()
    return padded.view(sequences, longest, -1), mask


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed_attention: PackedAttention | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of one layer as transformers calls it: [1, T, heads, width] from three [1, heads, T, width].

    Without `packed_attention`, transformers' default.
    """
    if packed_attention is None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return plain(module, query, key, value, attention_mask, dropout=dropout, **others)
    return packed_attention(query, key, value, dropout), None
