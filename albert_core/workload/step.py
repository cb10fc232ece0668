"""One optimizer step of a placed module: forward, backward and update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...backends import Backend, CastPolicy
from ...backends.training.gradients import total_norm
from ...backends.training.loss_scale import LossScale
from ..processes.ranks import accumulating
from .checks import split_loss
from .protocol import Workload

# The loss of a placed batch, and its figures.
Loss = Callable[[Any], tuple[torch.Tensor, Mapping[str, Any]]]


@dataclass(frozen=True)
class StepResult:
    """What a step computed, on the device.

    Attributes:
        loss: float32 (float64 if the module is), a scalar: the mean over the step's batches.
        gradient_norm: The norm of the gradients before clipping, a scalar.
        figures: Those of `Workload.loss`, likewise.
    """

    loss: torch.Tensor
    gradient_norm: torch.Tensor
    figures: Mapping[str, Any] = field(default_factory=dict)


def place_model(module: nn.Module, backend: Backend, policy: CastPolicy) -> nn.Module:
    """A module on the device, with its weights in the policy's accumulate dtype."""
    return backend.place(module.to(getattr(torch, policy.accumulate)))


def loss_of(workload: Workload, model: nn.Module, backend: Backend, policy: CastPolicy) -> Loss:
    """The loss of placed batches under the cast policy, not compiled.

    Args:
        workload: Its `loss` is called.
        model: On the device, or its wrapper in several processes.
        backend: The device.
        policy: The dtypes of a trained module.
    """

    def loss(batch: Any) -> tuple[torch.Tensor, Mapping[str, Any]]:
        with backend.autocast(policy), backend.named_range("loss"):
            value, figures = split_loss(workload.loss(model, batch))
        return value, figures

    return loss


def workload_step(
    loss: Loss,
    model: nn.Module,
    backend: Backend,
    optimizer: torch.optim.Optimizer,
    scaling: LossScale,
    max_grad_norm: float | None = None,
    before_update: Callable[[], object] = lambda: None,
    parallel: nn.Module | None = None,
) -> Callable[..., StepResult]:
    """Builds the function that makes an optimizer step.

    Args:
        loss: Of a placed batch, compiled or not.
        model: Its parameters are trained.
        backend: The device.
        optimizer: Of these parameters.
        scaling: The loss scale.
        max_grad_norm: The norm that gradients are clipped to, if any.
        before_update: Called before each update.
        parallel: In several processes, the wrapper of `model` that averages their gradients.

    Returns:
        ``step(batches, shares)`` with placed batches. A batch's loss counts by its share, by default all alike.
        Shares add up to 1, over all processes to their number.
    """

    def step(batches: Sequence[Any], shares: Sequence[float] | None = None) -> StepResult:
        weights = shares or [1 / len(batches)] * len(batches)
        total: torch.Tensor | None = None
        figures: dict[str, Any] = {}
        for number, (batch, share) in enumerate(zip(batches, weights, strict=True), start=1):
            # A share of 1 costs no operation.
            weight = None if share == 1.0 else backend.scalar(share)
            with accumulating(parallel or model) if number < len(batches) else nullcontext():
                value, found = loss(batch)
                part = value if weight is None else value * weight
                with backend.named_range("backward"):
                    scaling.scaled(part).backward()
            part = part.detach().to(torch.promote_types(part.dtype, torch.float32))
            total = part if total is None else total + part
            for name, figure in found.items():
                kept = figure.detach() if isinstance(figure, torch.Tensor) else figure
                kept = kept if weight is None else kept * weight
                figures[name] = figures[name] + kept if name in figures else kept
        norm = update(model.parameters(), backend, optimizer, scaling, max_grad_norm, before_update)
        assert total is not None, "a step has at least one batch"
        assert norm is not None, "it is always computed"
        return StepResult(total, norm, figures)

    return step


def update(
    parameters: Iterable[nn.Parameter],
    backend: Backend,
    optimizer: torch.optim.Optimizer,
    scaling: LossScale,
    max_grad_norm: float | None,
    before_update: Callable[[], object],
    measured: bool = True,
) -> torch.Tensor | None:
    """Clips the gradients, updates the parameters, and clears the gradients.

    Args:
        parameters: Those that have gradients.
        backend: The device.
        optimizer: Makes the update.
        scaling: The loss scale that the gradients have.
        max_grad_norm: The norm that gradients are clipped to, if any.
        before_update: Called before the update.
        measured: Whether the norm is computed without clipping, too.

    Returns:
        The gradients' norm before clipping, or None if it wasn't computed.
    """
    norm = None
    if measured or max_grad_norm is not None:
        scaling.unscale(optimizer)
        norm = total_norm(parameters, max_grad_norm)
    before_update()
    with backend.named_range("optimizer"):
        scaling.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    return norm
