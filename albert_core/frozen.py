"""Frozen encoders by kernel name: the backend's own, or the transformers module behind the same interface."""

from __future__ import annotations

import copy

import torch
from torch import nn

from .. import UserError
from ..backends import Backend, CastPolicy, FrozenEncoder
from ..kernels.packed import PackedBatch, PaddedBatch
from .encoder import LoadedEncoder


def frozen_encoder(encoder: LoadedEncoder, backend: Backend, policy: CastPolicy, kernel: str) -> FrozenEncoder:
    """`kernel` by name: ``transformers`` is the module itself, every other name is the backend's own."""
    if kernel == "transformers":
        return TransformersEncoder(encoder.module(), backend, policy)
    return backend.frozen_encoder(encoder.weights, policy, kernel)


class TransformersEncoder:
    """Frozen forward through transformers' own layers, padded batches only.

    The module is cast to the policy's compute dtype after its weights were rounded to the parameter dtype, which is
    what ``model.to(bfloat16)`` does; normalisation and softmax then happen wherever transformers does them.
    """

    name = "transformers"

    def __init__(self, module: nn.Module, backend: Backend, policy: CastPolicy) -> None:
        import transformers

        self.version = transformers.__version__
        rounded = copy.deepcopy(module).to(getattr(torch, policy.param)).to(getattr(torch, policy.compute))
        self.module = backend.place(rounded.eval().requires_grad_(False))

    def __call__(self, batch: PackedBatch | PaddedBatch) -> torch.Tensor:
        """Features (sequences, hidden), float32."""
        if isinstance(batch, PackedBatch):
            raise UserError("kernel transformers takes padded batches only; set layout: padded or bucketed")
        with torch.no_grad():
            output = self.module(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, token_type_ids=batch.token_type_ids
            )
        return output.last_hidden_state[:, 0].float()
