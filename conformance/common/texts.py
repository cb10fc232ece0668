"""Random texts as tokens, the same for every device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...albert_core.tokens.store import TokenStore

VOCABULARY = 120
# The first token of every text. A feature then depends on the rest of its text through attention only.
_CLS, _FIRST_WORD = 2, 5


def random_texts(
    lengths: Sequence[int], generator: torch.Generator, *, labels: int = 1, pairs: bool = False
) -> TokenStore:
    """Texts of these numbers of tokens, with random labels from 0 to `labels` - 1.

    Args:
        pairs: Token types are 0 in the first half of each text and 1 in the second.
    """
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = torch.randint(_FIRST_WORD, VOCABULARY, (int(offsets[-1]),), generator=generator).numpy().astype(np.int32)
    ids[offsets[:-1]] = _CLS
    types = np.concatenate([np.arange(length) >= length // 2 for length in lengths]).astype(np.uint8)
    drawn = torch.randint(0, labels, (len(lengths),), generator=generator).numpy()
    return TokenStore(ids, offsets, drawn, types if pairs else None, fingerprint="")


def span_of(store: TokenStore, row: int) -> slice:
    """The tokens of the text `row` in the arrays of `store`."""
    return slice(int(store.offsets[row]), int(store.offsets[row + 1]))


def single_text(store: TokenStore, row: int) -> TokenStore:
    """The text `row` of `store` as a store of its own."""
    span = span_of(store, row)
    types = None if store.token_type_ids is None else store.token_type_ids[span]
    offsets = np.array([0, span.stop - span.start])
    return TokenStore(store.ids[span], offsets, store.labels[row : row + 1], types, fingerprint="")
