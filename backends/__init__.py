"""The devices isotrain can train on, behind one interface."""

from __future__ import annotations

from .base import (
    DTYPES,
    LAYOUTS,
    Availability,
    Backend,
    BackendUnavailableError,
    CastPolicy,
    DeviceInfo,
    FrozenEncoder,
    FrozenForward,
    HeadStep,
    MemoryUse,
    ShapeGrid,
    UnitRate,
    Yardstick,
)
from .registry import backend_class, backend_layouts, get_backend, list_backends

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "Availability",
    "Backend",
    "BackendUnavailableError",
    "CastPolicy",
    "DeviceInfo",
    "FrozenEncoder",
    "FrozenForward",
    "HeadStep",
    "MemoryUse",
    "ShapeGrid",
    "UnitRate",
    "Yardstick",
    "backend_class",
    "backend_layouts",
    "get_backend",
    "list_backends",
]
