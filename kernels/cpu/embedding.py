"""The embedding of a trained encoder in native code: word + type + position, LayerNorm, dropout, and its gradients.

Tables and sums are float32. A table's gradient is dense, as optimizers with moments need it; the word table's may be
sparse. It adds up the rows of each word in the order of the tokens.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..packed.batch import PackedBatch
from ..weights import EncoderWeights
from .library import Embedding, EmbeddingGradients, native
from .recycled import Recycled


def embed(
    weights: EncoderWeights,
    batch: PackedBatch,
    isa: str,
    padding: int | None,
    rate: float,
    key: int,
    recycled: Recycled,
    sparse: bool = False,
) -> torch.Tensor:
    """The embedding of every token, float32 [T, embedding_size], differentiable by the weights.

    Args:
        weights: float32 and contiguous, on the host.
        batch: Validated, on the host.
        isa: An instruction set of `library.ISAS`.
        padding: The word whose row gets no gradient, if there is one.
        rate: The share of values that is dropped.
        key: That of the masks (see `DropoutRates.draw_key`).
        recycled: Memory for gradients.
        sparse: Whether the word table's gradient is a sparse tensor of the batch's words.
    """
    types = batch.token_type_ids
    call = _Call(
        isa.encode(),
        weights.config.layer_norm_eps,
        rate,
        key,
        -1 if padding is None else padding,
        recycled,
        sparse,
        _integers(batch.input_ids),
        _integers(batch.position_ids),
        None if types is None else _integers(types),
    )
    tables = (
        weights.word_embeddings,
        weights.position_embeddings,
        weights.token_type_embeddings,
        weights.embedding_norm_weight,
        weights.embedding_norm_bias,
    )
    embedded: torch.Tensor = _Embed.apply(call, *tables)
    return embedded


def _integers(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.int64).contiguous()


@dataclass(frozen=True)
class _Call:
    """What the backward pass is told again."""

    isa: bytes
    eps: float
    rate: float
    key: int
    padding: int
    recycled: Recycled
    sparse: bool
    ids: torch.Tensor
    positions: torch.Tensor
    types: torch.Tensor | None

    def described(self, tables: tuple[torch.Tensor, ...]) -> Embedding:
        tokens = (self.ids, self.positions, self.types)
        return Embedding(
            tables[0].shape[1],
            self.eps,
            self.rate,
            self.key,
            len(self.ids),
            *(table.data_ptr() for table in tables),
            *(None if tensor is None else tensor.data_ptr() for tensor in tokens),
        )

    def numbered(self) -> tuple[torch.Tensor, _Call]:
        """The batch's words, sorted, int64 [W], and the call with each id's place among them."""
        words, places = torch.unique(self.ids, return_inverse=True)
        kept = words.tolist()
        padding = kept.index(self.padding) if self.padding in kept else -1
        return words, replace(self, ids=places, padding=padding)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tables: torch.Tensor) -> torch.Tensor:
        ctx.call = call
        ctx.save_for_backward(*tables)
        out = torch.empty(len(call.ids), tables[0].shape[1])
        _library().isotrain_cpu_embed(call.isa, ctypes.byref(call.described(tables)), out.data_ptr())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tables, call = ctx.saved_tensors, ctx.call
        gradient = gradients[0].contiguous()
        shape, words = tables[0].shape, None
        if call.sparse:
            words, call = call.numbered()
            tables = (tables[0][words], *tables[1:])
        # Hardly two batches have as many words, so memory kept for their rows would pile up.
        word = torch.zeros_like(tables[0]) if call.sparse else call.recycled.empty(shape).zero_()
        sums = [word, *(call.recycled.empty(table.shape).zero_() for table in tables[1:])]
        to = EmbeddingGradients(*(total.data_ptr() for total in sums), call.padding)
        _library().isotrain_cpu_embed_backward(
            call.isa, ctypes.byref(call.described(tables)), gradient.data_ptr(), ctypes.byref(to)
        )
        if words is not None:
            sums[0] = torch.sparse_coo_tensor(words[None], word, shape, check_invariants=False)
        return None, *(total if needed else None for total, needed in zip(sums, ctx.needs_input_grad[1:], strict=True))


def _library() -> ctypes.CDLL:
    library = native().library
    assert library is not None, "one of its instruction sets was chosen"
    return library
