"""What training keeps in the accumulate dtype: clipped gradients, parameters after steps, running statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ...backends import Backend
from ..case import Device, Passed, implemented
from .operation import Worst, check_form, model_of, on_device, place, widened
from .rows import moments, normal
from .uncertain import Precision, Uncertain

# The last is a matrix of ALBERT's attention.
SHAPES = ((17, 127), (768,), (3, 1), (768, 768))
DECAY, MOMENTUM, BETAS, EPSILON = 0.1, 0.9, (0.9, 0.999), 1e-8
# A warm-up begins with 0.
RATES = (0.0, 1e-3, 1e-2, 1e-2, 3e-4)
# torch adds it to the norm before it divides.
CLIP_EPSILON = 1e-6
# Images, channels, height, width; and the share of a new batch in batch normalisation's statistics.
IMAGES, SHARE = (5, 17, 4, 3), 0.1
# The gradients of each parameter at each step, on the host.
Steps = Sequence[Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Optimizer:
    """An optimizer and its definition.

    Attributes:
        make: ``make(backend, parameters)``.
        expected: ``expected(parameter, gradients, precision, on_device)``, the parameter after a step with each
            gradient at each of RATES. on_device: whether the device computes the bias corrections.
    """

    name: str
    definition: str
    make: Callable[[Backend, list[torch.Tensor]], torch.optim.Optimizer]
    expected: Callable[[Uncertain, Sequence[Uncertain], Precision, bool], Uncertain]


def _make_adamw(backend: Backend, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, RATES[0], BETAS, EPSILON, DECAY, **backend.adam_options())


def _make_sgd(backend: Backend, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    del backend
    return torch.optim.SGD(parameters, RATES[0], momentum=MOMENTUM, weight_decay=DECAY)


def _adamw(parameter: Uncertain, gradients: Sequence[Uncertain], precision: Precision, on_device: bool) -> Uncertain:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017)."""
    first = second = Uncertain.exact(torch.zeros_like(parameter.value), precision)
    for step, (gradient, rate) in enumerate(zip(gradients, RATES, strict=True), start=1):
        parameter = parameter * (1.0 - rate * DECAY)
        first = first * BETAS[0] + gradient * (1.0 - BETAS[0])
        second = second * BETAS[1] + gradient * gradient * (1.0 - BETAS[1])
        corrections = [_correction(beta, step, precision, on_device) for beta in BETAS]
        deviation = (second / corrections[1]).sqrt() + EPSILON
        parameter = parameter - first / corrections[0] / deviation * rate
    return parameter


def _correction(beta: float, step: int, precision: Precision, on_device: bool) -> Uncertain | float:
    """1 - beta^step. On the host it is a float64."""
    if not on_device:
        return 1.0 - beta**step
    steps = Uncertain.exact(torch.tensor(float(step)), precision)
    return -steps.function(lambda t: beta**t, torch.zeros_like) + 1.0


def _sgd(parameter: Uncertain, gradients: Sequence[Uncertain], precision: Precision, on_device: bool) -> Uncertain:
    """Stochastic gradient descent with heavy-ball momentum."""
    del on_device
    momentum = Uncertain.exact(torch.zeros_like(parameter.value), precision)
    for gradient, rate in zip(gradients, RATES, strict=True):
        momentum = momentum * MOMENTUM + gradient + parameter * DECAY
        parameter = parameter - momentum * rate
    return parameter


OPTIMIZERS = (
    Optimizer(
        "AdamW",
        f"steps with bias correction and decoupled weight decay {DECAY:g} at several rates",
        _make_adamw,
        _adamw,
    ),
    Optimizer("SGD", f"steps with momentum {MOMENTUM:g} and weight decay {DECAY:g} at several rates", _make_sgd, _sgd),
)


def run_steps(optimizer: Optimizer, backend: Backend, parameters: list[torch.Tensor], steps: Steps) -> None:
    """Makes a step with each of `steps`, as the training loop does. `parameters` are leaves on the device."""
    built = optimizer.make(backend, parameters)
    backend.prepare_optimizer(built)
    for gradients, rate in zip(steps, RATES, strict=True):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = place(backend, gradient)
        backend.set_learning_rate(built, rate)
        built.step()
        built.zero_grad(set_to_none=True)
        backend.step_boundary()


def random_steps(generator: torch.Generator, dtype: torch.dtype) -> tuple[list[torch.Tensor], Steps]:
    """Parameters and gradients. The gradients of one row are always 0, as of a word that doesn't occur."""

    def values(scale: float) -> list[torch.Tensor]:
        return [(scale * normal(generator, *shape)).to(dtype) for shape in SHAPES]

    steps = [values(0.1) for _ in RATES]
    for gradients in steps:
        gradients[0][1] = 0.0
    return values(1.0), steps


def check_optimizer(optimizer: Optimizer, dtype: str, device: Device) -> Passed:
    """Compares the parameters after several steps with float64."""
    wide = _wide_dtype(dtype, device)
    parameters, steps = random_steps(device.generator(), wide)
    precision, worst = Precision.of(wide), Worst()

    def trained(on: Device) -> list[torch.Tensor]:
        placed = [place(on.backend, one).requires_grad_() for one in parameters]
        run_steps(optimizer, on.backend, placed, steps)
        on_device(optimizer.name, on.backend, *placed)
        return on.read(*placed)

    with implemented(optimizer.name):
        found = trained(device)
    model = model_of(dtype, device)
    modelled = [] if model is None else trained(model)
    in_device = bool(device.backend.adam_options().get("capturable"))
    for number, (start, got) in enumerate(zip(parameters, found, strict=True)):
        label = f"{tuple(start.shape)} after {len(steps)} steps"
        gradients = [Uncertain.exact(gradients[number], precision) for gradients in steps]
        want = optimizer.expected(Uncertain.exact(start, precision), gradients, precision, in_device)
        check_form(label, got, start.shape, wide)
        worst.add(label, widened(want, modelled[number]) if modelled else want, got)
    return worst.passed()


def check_clipping(dtype: str, device: Device) -> Passed:
    """Compares clipped gradients and their norm with float64. A norm below the limit changes no gradient's bits."""
    wide = _wide_dtype(dtype, device)
    precision, worst = Precision.of(wide), Worst()
    generator = device.generator()
    gradients = [normal(generator, *shape).to(wide) for shape in SHAPES]
    exact = [Uncertain.exact(one, precision) for one in gradients]
    norm = _norm(exact)
    for limit in (0.1, 1.0, 2.0 * float(norm.value)):
        parameters = [nn.Parameter(place(device.backend, torch.zeros_like(one))) for one in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = place(device.backend, gradient)
        with implemented("clip_grad_norm_"):
            total = nn.utils.clip_grad_norm_(parameters, limit)
        found = device.read(total, *(one.grad for one in parameters if one.grad is not None))
        clipped = exact
        if limit < float(norm.value):
            scale = Uncertain.exact(torch.tensor(limit, dtype=torch.float64), precision) / (norm + CLIP_EPSILON)
            clipped = [one * scale for one in exact]
        for got, want in zip(found, (norm, *clipped), strict=True):
            label = f"limit {limit:g}, {list(want.value.shape) or 'norm'}"
            check_form(label, got, want.value.shape, wide)
            worst.add(label, want, got)
    return worst.passed()


def check_running_statistics(dtype: str, device: Device) -> Passed:
    """Compares what batch normalisation remembers (Ioffe and Szegedy 2015) after several batches with float64."""
    wide = _wide_dtype(dtype, device)
    precision, worst, generator = Precision.of(wide), Worst(), device.generator()
    channels = IMAGES[1]
    starts = torch.zeros(channels, dtype=wide), torch.ones(channels, dtype=wide)
    mean, variance = (place(device.backend, one) for one in starts)
    expected = [Uncertain.exact(one, precision) for one in starts]
    for _ in RATES:
        images = normal(generator, *IMAGES).to(wide)
        with implemented("batch_norm"):
            functional.batch_norm(place(device.backend, images), mean, variance, training=True, momentum=SHARE)
        rows = images.transpose(0, 1).flatten(1)
        batch_mean, batch_variance = moments(Uncertain.exact(rows, precision))
        unbiased = batch_variance * (rows.shape[1] / (rows.shape[1] - 1))
        batch = batch_mean.shaped(torch.Tensor.flatten), unbiased.shaped(torch.Tensor.flatten)
        expected = [kept * (1.0 - SHARE) + new * SHARE for kept, new in zip(expected, batch, strict=True)]
    for label, want, got in zip(
        ("running mean", "running variance"), expected, device.read(mean, variance), strict=True
    ):
        check_form(label, got, want.value.shape, wide)
        worst.add(label, want, got)
    return worst.passed()


def _norm(gradients: Sequence[Uncertain]) -> Uncertain:
    """The norm of all gradients, as the norm of their norms."""
    squares = [(one * one).sum(tuple(range(one.value.dim()))) for one in gradients]
    total = squares[0]
    for one in squares[1:]:
        total = total + one
    return total.sqrt()


def _wide_dtype(dtype: str, device: Device) -> torch.dtype:
    wide = device.policy(dtype).accumulate
    found: torch.dtype = getattr(torch, wide)
    return found
