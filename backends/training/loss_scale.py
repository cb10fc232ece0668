"""Loss scaling for float16: scales up gradients that are too small for it, and skips steps that overflow.

torch.amp.GradScaler does the scaling. The code here counts skipped steps without a device read at each step, and saves
and restores the state.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from ... import UserError
from ...kernels.words import count
from ..types import CastPolicy

log = logging.getLogger("isotrain")


class LossScale:
    """The loss scale of one run. Without a scaler (every dtype but float16), it only makes the step."""

    def __init__(self, scaler: torch.amp.GradScaler | None, one: torch.Tensor) -> None:
        """`one` is a float32 1 on the device. Scaling it yields the scale."""
        self.scaler = scaler
        self._one = one
        self._skipped = one - one
        self._reported = 0

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss that backward starts from."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the gradients by the scale, for code that reads them before the step."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Calls ``optimizer.step()``. If a gradient is inf or NaN, skips it and halves the scale."""
        if self.scaler is None:
            optimizer.step()
            return
        before = self.scaler.scale(self._one)
        self.scaler.step(optimizer)
        self.scaler.update()
        self._skipped = self._skipped + (self.scaler.scale(self._one) < before)

    def figures(self) -> dict[str, float]:
        """The scale and the number of skipped steps, for a log line. Empty without a scaler."""
        if self.scaler is None:
            return {}
        skipped, scale = int(self._skipped), self.scaler.get_scale()
        if skipped > self._reported:
            log.warning(
                "%s overflowed float16, left out (%d so far); the loss scale is now %g",
                count(skipped - self._reported, "step"),
                skipped,
                scale,
            )
        self._reported = skipped
        return {"loss_scale": scale, "skipped_steps": float(skipped)}

    def state(self) -> dict[str, Any]:
        """The state as plain values for a checkpoint. Empty without a scaler."""
        return {} if self.scaler is None else {**self.scaler.state_dict(), "skipped": int(self._skipped)}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        if self.scaler is not None:
            values = dict(state)
            self._reported = values.pop("skipped", 0)
            self._skipped = self._one * self._reported
            self.scaler.load_state_dict(values)


def unscaled() -> LossScale:
    """The scale of a run that needs none."""
    return LossScale(None, torch.ones(()))


def loss_scale(backend: Any, policy: CastPolicy) -> LossScale:
    """The scale of a module that is trained under `policy`.

    Args:
        backend: The Backend. Of type Any, since `Backend` imports this folder.

    Raises:
        UserError: float16 on a device without a gradient scaler.
    """
    scaler = backend.grad_scaler(policy)
    if policy.compute == "float16" and scaler is None:
        raise UserError(
            f"dtype float16 can't train a whole model on backend {backend.name}: its gradients underflow, and there is "
            "no gradient scaler; set dtype: bfloat16"
        )
    one = torch.ones(())
    return LossScale(scaler, one if scaler is None else backend.place(one))
