"""torch.compile with inductor's freezing, one graph per static shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ... import UserError
from ...albert_core.features.source import in_dtype
from ...albert_core.model.encoder import LoadedEncoder
from ...backends import Backend
from ...kernels.inductor import limit_programs, why_no_compiler
from ...kernels.packed import PaddedBatch
from .base import BaselineEncoder, baseline_policy, cls_module


class CompiledEncoder(BaselineEncoder):
    """The module without its pooler, compiled for exact shapes (``dynamic=False``) and with frozen weights.

    Freezing folds constants and packs linear weights for oneDNN. inductor recommends it for inference on CPUs
    (``torch._inductor.config.freezing``).
    """

    name = "torch.compile"

    def __init__(self, encoder: LoadedEncoder, backend: Backend, dtype: str, layout: str) -> None:
        import torch._inductor.config as inductor

        del layout
        self.version = torch.__version__
        self.policy = baseline_policy(backend, dtype)
        self.notes = ("inductor with freezing, static shapes",)
        module = backend.place(in_dtype(cls_module(encoder), self.policy))
        options: Any = inductor
        options.freezing = True
        limit_programs()
        self.forward = torch.compile(module, dynamic=False)

    @torch.no_grad()
    def features(self, batch: PaddedBatch) -> torch.Tensor:
        features: torch.Tensor = self.forward(batch.input_ids, batch.attention_mask)
        return features.float()

    def prepare(self, batches: Sequence[PaddedBatch]) -> None:
        if reason := why_no_compiler(batches[0].device.type):
            raise UserError(f"torch.compile can't run here: {reason}")
        super().prepare(batches)
