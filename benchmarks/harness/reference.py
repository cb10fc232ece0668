"""The reference logits of a run: transformers' module and the head, on the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ...albert_core.model.encoder import LoadedEncoder
from ...albert_core.model.head import ClassificationHead
from .texts import Texts

# How many texts are judged.
PROBED_TEXTS = 8


def probed_texts(count: int) -> list[int]:
    """Numbers of the judged texts of `count`: evenly spread, so that they lie in several batches, at several places."""
    return np.unique(np.linspace(0, count - 1, PROBED_TEXTS).round().astype(np.int64)).tolist()


@torch.no_grad()
def reference_logits(
    encoder: LoadedEncoder, head: ClassificationHead, texts: Texts, param: str, compute: str
) -> dict[int, np.ndarray]:
    """Computes the logits of the judged texts without any kernel or layout of this project.

    All texts are one row, in which a token sees only its own text's. That costs one forward pass of as many tokens as
    they have, and no copy of the model.

    Args:
        head: With its initial weights, on the host.
        param: Dtype that the encoder's weights are rounded to first, as the target rounds them.
        compute: The target's compute dtype; the reference computes in float64 for float64, else in float32.

    Returns:
        By the text's number, its logits [labels].
    """
    judged = probed_texts(len(texts.lengths))
    lengths = torch.from_numpy(texts.lengths[judged])
    ids = np.concatenate([texts.ids[texts.offsets[text] : texts.offsets[text + 1]] for text in judged])
    owner = torch.arange(len(judged)).repeat_interleave(lengths)
    first = lengths.cumsum(0) - lengths
    module = encoder.module()
    with _rounded(module, getattr(torch, param), torch.float64 if compute == "float64" else torch.float32):
        states = module(
            input_ids=torch.from_numpy(ids)[None],
            position_ids=(torch.arange(len(ids)) - first[owner])[None],
            attention_mask=(owner[:, None] == owner)[None, None],
        ).last_hidden_state
    return dict(zip(judged, head(states[0, first]).numpy(), strict=True))


@contextmanager
def _rounded(module: nn.Module, param: torch.dtype, wide: torch.dtype) -> Iterator[None]:
    """Each layer computes in `wide` with weights rounded to `param`: copies that live only while the layer runs."""
    loaded: dict[tuple[nn.Module, str], nn.Parameter] = {}

    def enter(layer: nn.Module, _: Any) -> None:
        for name, weight in layer.named_parameters(recurse=False):
            loaded[layer, name] = weight
            setattr(layer, name, nn.Parameter(weight.to(param).to(wide), requires_grad=False))

    def leave(layer: nn.Module, *_: Any) -> None:
        for name, _weight in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, loaded.pop((layer, name)))

    hooks = []
    for layer in module.modules():
        hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
