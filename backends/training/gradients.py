"""The norm of a step's gradients, of which those of embeddings may be sparse."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


def total_norm(parameters: Iterable[nn.Parameter], most: float | None = None) -> torch.Tensor:
    """The L2 norm of all gradients together, a scalar on their device.

    Args:
        parameters: Those without a gradient are left out.
        most: The norm that the gradients are then scaled down to, if it is larger.
    """
    # torch's functions read `grad` of what they are given, and no sparse one.
    held: list[Any] = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            # Several micro-batches may have used the same row.
            parameter.grad = parameter.grad.coalesce()
            held.append(SimpleNamespace(grad=parameter.grad.values()))
        elif parameter.grad is not None:
            held.append(parameter)
    if most is not None:
        return nn.utils.clip_grad_norm_(held, most)
    return nn.utils.get_total_norm([one.grad for one in held])
