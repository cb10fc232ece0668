"""The devices isotrain can train on, behind one interface."""

from __future__ import annotations

from .base import Backend
from .error_budget import ErrorBudget
from .protocols import FrozenEncoder, FrozenForward, HeadStep, PackedAttention
from .registry import (
    backend_class,
    check_available,
    foresee_backend,
    get_backend,
    list_backends,
    rank_backend,
    rank_group,
)
from .types import (
    DTYPES,
    LAYOUTS,
    Availability,
    BackendUnavailableError,
    CastPolicy,
    DeviceInfo,
    EnergyUse,
    Foreseen,
    MemoryUse,
    ShapeGrid,
    UnitRate,
    device_label,
)

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "Availability",
    "Backend",
    "BackendUnavailableError",
    "CastPolicy",
    "DeviceInfo",
    "EnergyUse",
    "ErrorBudget",
    "Foreseen",
    "FrozenEncoder",
    "FrozenForward",
    "HeadStep",
    "MemoryUse",
    "PackedAttention",
    "ShapeGrid",
    "UnitRate",
    "backend_class",
    "check_available",
    "device_label",
    "foresee_backend",
    "get_backend",
    "list_backends",
    "rank_backend",
    "rank_group",
]
