"""Judges results by the error budget that the backend names, with the rule of `isotrain parity`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...backends import Backend, CastPolicy, get_backend, options_section
from ...benchmarks.parity.bands import COARSE, COARSE_FACTOR, FACTOR, Check
from ...benchmarks.parity.trace import DRAWS
from ..case import Device, Passed, ViolationError


@dataclass(frozen=True)
class Draw:
    """A host device that computes with the rounding of another one, and the policy with which it does."""

    device: Device
    policy: CastPolicy


def draws(backend: Backend, policy: CastPolicy) -> list[Draw]:
    """Opens the draws of the error budget that `backend` has under `policy`."""
    budget = backend.error_budget(policy)
    section = options_section(budget.backend)
    options = None if section is None else {section: dict(budget.options)}
    opened = [get_backend(name, options) for name in budget.names(DRAWS)]
    return [Draw(Device(one), one.cast_policy(budget.dtype, strict=budget.narrow)) for one in opened]


def factor(policy: CastPolicy) -> float:
    """How many times the error of the draws is allowed."""
    return COARSE_FACTOR if policy.param in COARSE or policy.compute in COARSE else FACTOR


def judged(checks: Sequence[Check], lacks: str = "") -> Passed:
    """The verdict on `checks`. The detail names the check with the largest share.

    Args:
        lacks: What wasn't checked, and why.

    Raises:
        ViolationError: An error is larger than its budget.
    """
    worst = max(checks, key=lambda check: check.ratio)
    if not worst.ratio <= 1.0:
        raise ViolationError(f"{worst.quantity}: off by {worst.error:.3g}, {worst.allowed:.3g} is allowed", worst.ratio)
    return Passed(worst.ratio, worst.quantity, lacks)
