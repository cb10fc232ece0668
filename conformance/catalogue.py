"""All cases of the suite, and the choice among them."""

from __future__ import annotations

from . import device, encoder, operations, rates, training
from .case import Case


def cases() -> list[Case]:
    """Every case, in the order in which a device is brought up."""
    return [*device.cases(), *operations.cases(), *encoder.cases(), *training.cases(), *rates.cases()]
