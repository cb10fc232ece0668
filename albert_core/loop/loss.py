"""The loss that a training step differentiates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..tasks import Task


def summed_loss(model: nn.Module, task: Task) -> Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """The function of inputs and labels that a training step differentiates: the summed loss of the batch's rows in
    nats, and how many of them `model` classified correctly.
    """

    def loss(inputs: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return task.loss(model(inputs), labels)

    return loss
