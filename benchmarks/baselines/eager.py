"""The transformers module, run eagerly: as in the Banking77 experiment, and without its unused pooler."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ...albert_core.features.source import in_dtype
from ...albert_core.model.encoder import LoadedEncoder
from ...backends import Backend
from ...kernels.packed import PaddedBatch
from .base import BaselineEncoder, baseline_policy


class EagerEncoder(BaselineEncoder):
    """AlbertModel or BertModel without its pooler, with torch's scaled_dot_product_attention."""

    name = "transformers"

    def __init__(self, encoder: LoadedEncoder, backend: Backend, dtype: str, layout: str) -> None:
        import transformers

        del layout
        self.version = transformers.__version__
        self.policy = baseline_policy(backend, dtype)
        self.module = backend.place(in_dtype(self._module(encoder), self.policy))

    def _module(self, encoder: LoadedEncoder) -> nn.Module:
        module: nn.Module = encoder.module()
        return module

    @torch.no_grad()
    def features(self, batch: PaddedBatch) -> torch.Tensor:
        output = self.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        features: torch.Tensor = output.last_hidden_state[:, 0]
        return features.float()


class ExperimentEncoder(EagerEncoder):
    """The same with the pooler, which the experiment computes and never reads."""

    name = "transformers with its unused pooler"

    def _module(self, encoder: LoadedEncoder) -> nn.Module:
        return with_pooler(encoder)


def with_pooler(encoder: LoadedEncoder) -> nn.Module:
    """A copy of the encoder's module with a pooler, as ``AlbertModel.from_pretrained`` returns it.

    The pooler has random weights from a fixed seed, since nothing reads its output.
    """
    bare: Any = encoder.module()
    torch.manual_seed(0)
    module: nn.Module = type(bare)(copy.deepcopy(bare.config), add_pooling_layer=True)
    missing, unexpected = module.load_state_dict(bare.state_dict(), strict=False)
    assert not unexpected, f"the pooler is all that differs, not {unexpected}"
    assert all("pooler" in name for name in missing), f"the pooler is all that differs, not {missing}"
    return module.eval()
