"""Faults planted in runs that train the whole model, where a device's own products, gradients and updates all count."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from .faults import F32, Fault, _after_step, _decay, before_training

WHOLE = {"freeze_encoder": False, "learning_rate": 1e-3, "num_epochs": 2}


_before_training = partial(before_training, "make_step")


def _query(training: Any) -> torch.nn.Linear:
    """The first query projection in the encoder."""
    return next(module for name, module in training.model.named_modules() if name.endswith("query"))


def _epsilon(training: Any, size: float) -> None:
    for module in training.model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = size


def _bfloat16_products(training: Any, size: float) -> None:
    """Training computes in bfloat16 where float32 is promised; evaluations and layers are right."""
    loss = training.loss

    def narrow(inputs: Any, labels: torch.Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(inputs, labels)

    training.loss = narrow


def _bfloat16_gradients(training: Any, size: float) -> None:
    for parameter in training.model.parameters():
        parameter.register_hook(lambda gradient: gradient.to(torch.bfloat16).to(gradient.dtype))


def _scaled_gradient(training: Any, size: float) -> None:
    """Adam's update hardly changes with a gradient's scale: only its norm tells."""
    _query(training).weight.register_hook(lambda gradient: gradient * (1 + size))


def _weight(training: Any, size: float) -> torch.Tensor:
    return _query(training).weight.detach().clone()


def _stale_weight(training: Any, memory: dict[str, Any], size: float) -> None:
    """The query projection misses step number `size`."""
    if memory["number"] == size:
        _query(training).weight.copy_(memory["before"])


WHOLE_FAULTS = (
    Fault(
        "whole: wrong LayerNorm epsilon", "for 1e-12", (1e-3, 1e-5, 1e-6), 1e-5, _before_training(_epsilon), F32, None
    ),
    Fault("whole: bf16 products", "", (1,), 1, _before_training(_bfloat16_products), F32, ""),
    Fault("whole: bf16 gradients", "", (1,), 1, _before_training(_bfloat16_gradients), F32, ""),
    Fault(
        "whole: scaled gradient of the queries",
        "relative",
        (1.0, 0.1, 1e-2, 1e-3),
        0.1,
        _before_training(_scaled_gradient),
        F32,
        "",
    ),
    Fault("whole: stale queries (one step)", "step", (10, 2), 2, _after_step(_stale_weight, _weight), F32, ""),
    Fault("whole: wrong weight decay", "relative", (1.0, 0.1, 0.01), 0.1, _decay, F32, ""),
)
