"""Names that the command line promises and this version doesn't carry yet: their probe says so.

Each moves into a file of its own (`xla.py`, `tt.py`) with its implementation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from .base import Availability, Backend, BackendUnavailableError

if TYPE_CHECKING:
    import torch


class _PlannedBackend(Backend):
    """A backend whose every use ends in one clear line."""

    @classmethod
    def probe(cls) -> Availability:
        return Availability(
            False,
            f"isotrain has no {cls.name} implementation in this version",
            "use --backend cpu or --backend cuda",
        )

    def __init__(self, index: int | None = None) -> None:
        super().__init__(index)
        self._refuse()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        availability = self.probe()
        raise BackendUnavailableError(
            f"backend {self.name!r} can't run here: {availability.reason}; {availability.fix}"
        )

    @property
    def device(self) -> torch.device:
        self._refuse()

    info = cast_policy = synchronize = memory = rng_state = set_rng_state = autocast = frozen_encoder = _refuse


class XlaBackend(_PlannedBackend):
    """TPU and other PJRT devices through torch_xla."""

    name = "xla"


class TtBackend(_PlannedBackend):
    """Tenstorrent cards through the vendor's PJRT plugin, and their emulation."""

    name = "tt"
