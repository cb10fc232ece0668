"""A head's optimizer steps in each form that a device may give them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ... import UserError
from ...albert_core.config.schema import TrainConfig
from ...albert_core.loop.optim import build_optimizer
from ...albert_core.model.head import ClassificationHead
from ...backends import Backend
from ...benchmarks.parity.recording.observe import adam_on_device
from ..case import Device, UnsupportedError

Form = Literal["autograd", "fused", "captured", "compiled", "torch-compile"]
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

WIDTH, HIDDEN, LABELS = 24, 16, 5
# The loss is divided by so many more than the rows of the batch, as in a window of several batches.
_MORE = 3


@dataclass(frozen=True)
class Plan:
    """Some optimizer steps of a head.

    Attributes:
        rows: The texts of each step's batch.
        rates: The learning rate of each step.
        optim: The key `optim` of a configuration.
        bias_rates: The biases' rate of each step, if they are a group of their own, which doesn't decay.
        dropout: The head's. Unless it is 0, all steps have the same batch, so that only dropout tells them apart.
    """

    seed: int
    rows: tuple[int, ...]
    rates: tuple[float, ...]
    optim: str = "adamw"
    bias_rates: tuple[float, ...] = ()
    dropout: float = 0.0

    def rates_at(self, step: int) -> tuple[float, ...]:
        """The learning rate of each parameter group. The last one is the biases'."""
        return (self.rates[step], self.bias_rates[step]) if self.bias_rates else (self.rates[step],)


@dataclass(frozen=True)
class Done:
    """What the steps did, on the host.

    Attributes:
        losses: float64 [steps], the summed loss of each step in nats.
        right: float64 [steps], the texts classified correctly.
        weights: The head's tensors by name, before the first step and after each one.
        betas: Those of an Adam that has its step counter on the device, else None.
    """

    losses: np.ndarray
    right: np.ndarray
    weights: list[dict[str, torch.Tensor]]
    betas: list[float] | None


def run_steps(device: Device, plan: Plan, form: Form, dtype: str = "float32") -> Done:
    """Makes the steps of `plan` on `device`.

    Raises:
        UnsupportedError: The device has no step of this form.
    """
    backend = device.backend
    config = TrainConfig.model_validate(
        {
            "seed": plan.seed,
            "optim": plan.optim,
            "weight_decay": 0.1,
            "no_decay": ["bias"] if plan.bias_rates else [],
            "momentum": 0.9,
            "adam_epsilon": 1e-3,
        }
    )
    made = ClassificationHead(WIDTH, HIDDEN, LABELS, plan.seed, plan.dropout)
    head = backend.place(made.to(getattr(torch, dtype)))
    optimizer = build_optimizer(head, config, backend)
    backend.prepare_optimizer(optimizer)
    step = _step(backend, head, optimizer, form)
    generator = torch.Generator().manual_seed(plan.seed)
    sums, weights = [], [_weights(device, head)]
    for number, rows in enumerate(plan.rows):
        if plan.dropout:
            generator.manual_seed(plan.seed)
        features = torch.randn(rows, WIDTH, generator=generator)
        labels = torch.randint(0, LABELS, (rows,), generator=generator)
        backend.set_learning_rate(optimizer, *plan.rates_at(number))
        # A later step may write its result where this one is.
        sums.append(step(backend.place(features), backend.place(labels)).clone())
        weights.append(_weights(device, head))
    losses, right = torch.stack([part.double() for part in device.read(*sums)]).numpy().T
    return Done(losses, right, weights, adam_on_device(optimizer))


def _step(backend: Backend, head: nn.Module, optimizer: torch.optim.Optimizer, form: Form) -> Step:
    if form == "fused":
        fused = backend.head_step(list(head.parameters()), optimizer)
        if fused is None:
            raise UnsupportedError("it has no fused step of a head: autograd makes it")
        return lambda features, labels: fused(features, labels, len(labels) + _MORE)

    mode = None
    if form == "torch-compile":
        mode = "default"
        try:
            backend.check_compile_mode(mode)
        except UserError as error:
            raise UnsupportedError(str(error)) from error

    def summed(features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = head(features)
        right = (logits.detach().argmax(dim=-1) == labels).sum()
        return functional.cross_entropy(logits, labels, reduction="sum"), right

    forward = backend.compile(summed, mode) if form in ("compiled", "torch-compile") else summed

    def step(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss, right = forward(features, labels)
        (loss / (len(labels) + _MORE)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wide = torch.promote_types(loss.dtype, torch.float32)
        return torch.stack((loss.detach().to(wide), right.to(wide)))

    return backend.capture_step(step, optimizer) if form == "captured" else step


def _weights(device: Device, head: nn.Module) -> dict[str, torch.Tensor]:
    names, tensors = zip(*head.named_parameters(), strict=True)
    return {name: tensor.clone() for name, tensor in zip(names, device.read(*tensors), strict=True)}
