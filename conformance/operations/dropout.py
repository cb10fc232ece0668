"""Dropout, also that of fused attention: its rate, its scale, and its masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch.nn import functional

from ...backends import Backend
from ..case import Device, Passed, ViolationError, implemented
from .operation import Numerics, Worst, check_form, on_device, place, promised
from .rows import softmax
from .uncertain import SIGMAS, Uncertain

# ALBERT's states of 8 texts, and an odd shape.
SHAPES = ((8, 128, 768), (17, 127))
RATES = (0.1, 0.5)
# Batch, heads, queries, keys.
PROBABILITIES = (2, 12, 64, 64)


def check_dropout(dtype: str, device: Device) -> Passed:
    """The share of dropped values, the values that are kept, and that no two masks are the same."""
    numerics, worst = promised(dtype, device), Worst()
    for shape in SHAPES:
        x = _values(device, numerics, shape)
        placed, exact = place(device.backend, x), Uncertain.exact(x, numerics.compute)
        for rate in RATES:
            first, second = device.read(*(_dropped(device.backend, placed, rate) for _ in "ab"))
            _check_calls(worst, rate, exact, (first, second), numerics)
        for name, result in (
            ("rate 0", _dropped(device.backend, placed, 0.0)),
            ("in evaluation", functional.dropout(placed, RATES[-1], training=False)),
        ):
            if not torch.equal(device.read(result)[0], x):
                raise ViolationError(f"{name}: dropout changes values")
    return worst.passed()


def check_gradient(dtype: str, device: Device) -> Passed:
    """The gradient is dropped and scaled where the values were."""
    numerics, worst = promised(dtype, device), Worst()
    for shape, rate in product(SHAPES, RATES):
        x = upstream = _values(device, numerics, shape)
        leaf = place(device.backend, x).requires_grad_()
        result = _dropped(device.backend, leaf, rate)
        result.backward(place(device.backend, upstream))
        if leaf.grad is None:
            raise ViolationError(f"rate {rate:g}: there is no gradient")
        forward, gradient = device.read(result, leaf.grad)
        _check_values(worst, rate, Uncertain.exact(upstream, numerics.compute), gradient, numerics)
        _check_same_mask(rate, forward, gradient)
    return worst.passed()


def check_attention(dtype: str, device: Device) -> Passed:
    """Of equal scores and the identity as values, the result is the probabilities, and the gradient their transpose."""
    numerics, worst = promised(dtype, device), Worst()
    scores = torch.zeros(PROBABILITIES, dtype=numerics.dtype)
    identity = torch.eye(PROBABILITIES[-1], dtype=numerics.dtype).expand(PROBABILITIES)
    probabilities = softmax(numerics, Uncertain.exact(scores, numerics.compute))
    backend = device.backend
    placed, upstream = place(backend, scores), place(backend, identity)
    for rate in RATES:
        values = place(backend, identity).requires_grad_()
        with implemented("scaled_dot_product_attention"):
            calls = [functional.scaled_dot_product_attention(placed, placed, values, dropout_p=rate) for _ in range(2)]
            calls[0].backward(upstream)
        on_device(f"rate {rate:g}", backend, *calls)
        if values.grad is None:
            raise ViolationError(f"rate {rate:g}: there is no gradient")
        first, second, gradient = device.read(*calls, values.grad)
        _check_calls(worst, rate, probabilities, (first, second), numerics)
        _check_values(worst, rate, probabilities, gradient.mT, numerics)
        _check_same_mask(rate, first, gradient.mT)
    return worst.passed()


def _values(device: Device, numerics: Numerics, shape: Sequence[int]) -> torch.Tensor:
    """Values from 1 to 2, so that only a dropped one is 0."""
    return (1.0 + torch.rand(*shape, generator=device.generator(), dtype=torch.float64)).to(numerics.dtype)


def _dropped(backend: Backend, x: torch.Tensor, rate: float) -> torch.Tensor:
    with implemented("dropout"):
        result = functional.dropout(x, rate)
    on_device(f"rate {rate:g}", backend, result)
    return result


def _check_calls(
    worst: Worst, rate: float, x: Uncertain, found: tuple[torch.Tensor, torch.Tensor], numerics: Numerics
) -> None:
    """Of two calls, each drops at the rate, and with a mask of its own."""
    for one in found:
        _check_values(worst, rate, x, one, numerics)
    first, second = (one == 0 for one in found)
    _check_count(f"rate {rate:g}: the masks of two calls differ in", first ^ second, 2 * rate * (1 - rate))


def _check_same_mask(rate: float, forward: torch.Tensor, gradient: torch.Tensor) -> None:
    differ = int(((forward == 0) != (gradient == 0)).sum())
    if differ:
        raise ViolationError(
            f"rate {rate:g}: {differ} gradients of {forward.numel()} have another mask than their value"
        )


def _check_values(worst: Worst, rate: float, x: Uncertain, found: torch.Tensor, numerics: Numerics) -> None:
    check_form(f"rate {rate:g}", found, x.value.shape, numerics.dtype)
    dropped = found == 0
    _check_count(f"rate {rate:g}: dropped are", dropped, rate)
    kept = x.shaped(lambda tensor: tensor.masked_fill(dropped, 0.0))
    # The mask may be scaled first.
    scale = Uncertain.exact(torch.ones(()), numerics.compute) / (1.0 - rate)
    worst.add(f"rate {rate:g}", kept * scale, found)


def _check_count(words: str, mask: torch.Tensor, share: float) -> None:
    """Raises ViolationError if the number of True isn't binomial with this share."""
    count, expected = int(mask.sum()), share * mask.numel()
    allowed = SIGMAS * math.sqrt(expected * (1.0 - share))
    if abs(count - expected) > allowed:
        raise ViolationError(
            f"{words} {count:,} of {mask.numel():,}, expected {expected:,.0f} +- {allowed:,.0f}",
            abs(count - expected) / allowed,
        )
