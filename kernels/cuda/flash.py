"""torch's variable-length flash attention, in the versions of torch that have it."""

from __future__ import annotations

import torch


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest_query: int,
    longest_key: int,
) -> torch.Tensor:
    """torch's variable-length flash attention: query [queries, heads, width], key and value [tokens, heads, width].

    Bounds are int32 [sequences + 1]. `torch.nn.attention.varlen` came with torch 2.10. The operator below it, which is
    not public, is the same in 2.9. Only the first seven arguments have kept their position since.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        operator = torch.ops.aten._flash_attention_forward
        return operator(query, key, value, query_bounds, key_bounds, longest_query, longest_key, 0.0, False, False)[0]
    attended = varlen_attn(query, key, value, query_bounds, key_bounds, longest_query, longest_key)
    assert isinstance(attended, torch.Tensor)
    return attended
