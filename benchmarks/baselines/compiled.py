"""torch.compile with inductor's freezing, one graph per static shape."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Any

import torch

from ... import UserError
from ...albert_core.model.encoder import LoadedEncoder
from ...backends import Backend
from ...kernels.packed import PaddedBatch
from .base import BaselineEncoder, baseline_policy, cls_module, in_dtype

# The static layout has only a few shapes, so more graphs than this are a mistake.
MOST_GRAPHS = 64


class CompiledEncoder(BaselineEncoder):
    """The module without its pooler, compiled for exact shapes (``dynamic=False``) and with frozen weights.

    Freezing folds constants and packs linear weights for oneDNN. inductor recommends it for inference on CPUs
    (``torch._inductor.config.freezing``).
    """

    name = "torch.compile"

    def __init__(self, encoder: LoadedEncoder, backend: Backend, dtype: str, layout: str) -> None:
        import torch._dynamo
        import torch._inductor.config as inductor

        del layout
        self.version = torch.__version__
        self.policy = baseline_policy(backend, dtype)
        self.notes = ("inductor with freezing, static shapes",)
        module = backend.place(in_dtype(cls_module(encoder), self.policy))
        options: Any = inductor
        dynamo: Any = torch._dynamo.config
        options.freezing = True
        dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_GRAPHS)
        # Otherwise dynamo would run the module eagerly beyond the limit, and the figure would not be the compiler's.
        dynamo.fail_on_recompile_limit_hit = True
        self.forward = torch.compile(module, dynamic=False)

    @torch.no_grad()
    def features(self, batch: PaddedBatch) -> torch.Tensor:
        features: torch.Tensor = self.forward(batch.input_ids, batch.attention_mask)
        return features.float()

    def prepare(self, batches: Sequence[PaddedBatch]) -> None:
        on_host = all(batch.input_ids.is_cpu for batch in batches)
        compiler = os.environ.get("CXX", "g++")
        if on_host and shutil.which(compiler) is None:
            raise UserError(
                f"torch.compile can't run here: inductor needs a C++ compiler, and {compiler} is not installed"
            )
        super().prepare(batches)
