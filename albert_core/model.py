"""What is trained: the head alone, or encoder and head together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ..backends import Backend, CastPolicy
from ..kernels.packed import PaddedBatch
from .batches import IGNORED
from .head import ClassificationHead


def checkpoint_activations(encoder: Any) -> None:
    """Makes every layer of a transformers encoder recompute its activations in backward (Chen et al. 2016, 1604.06174).

    By torch.utils.checkpoint around each layer, for transformers has no gradient checkpointing for ALBERT. The losses
    keep their bits: a layer's dropout generator is put back for the second run.
    """
    stack = encoder.encoder
    if encoder.config.model_type == "albert":
        layers = [layer for group in stack.albert_layer_groups for layer in group.albert_layers]
    else:
        layers = list(stack.layer)
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def summed_loss(model: nn.Module) -> Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """The function of inputs and labels that a training step differentiates: the summed cross entropy of the batch's
    texts in nats, and how many of them `model` told right. Rows labelled IGNORED count in neither.
    """

    def loss(inputs: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(inputs)
        right = (logits.detach().argmax(dim=-1) == labels).sum()
        return functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED), right

    return loss


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes of `model`: its state without frozen parameters (those beneath adapters)."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def load_trained_state(model: nn.Module, saved: dict[str, torch.Tensor]) -> None:
    """Puts back a `trained_state`, or a whole ``state_dict``. RuntimeError where one is missing or foreign."""
    absent = trained_state(model).keys() - saved.keys()
    if absent:
        raise RuntimeError(f"the saved model lacks {', '.join(sorted(absent))}")
    model.load_state_dict(model.state_dict() | saved, strict=True)


class WholeModel(nn.Module):
    """Encoder and head, all trained: ``last_hidden_state[:, 0]`` through the MLP.

    Master weights are in the policy's accumulate dtype (float32 for bfloat16). The encoder's products run in its
    compute dtype under the backend's autocast, the head and the loss in the head's own dtype.
    """

    def __init__(self, encoder: nn.Module, head: ClassificationHead, backend: Backend, policy: CastPolicy) -> None:
        super().__init__()
        self.encoder = encoder.to(getattr(torch, policy.accumulate))
        self.head = head
        self._backend = backend
        self._policy = policy

    def forward(self, batch: PaddedBatch) -> torch.Tensor:
        """Logits (sequences, num_labels)."""
        with self._backend.autocast(self._policy):
            output = self.encoder(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, token_type_ids=batch.token_type_ids
            )
        return self.head(output.last_hidden_state[:, 0])
