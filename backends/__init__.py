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
    HeadStep,
    MemoryUse,
    ShapeGrid,
    UnitRate,
)
from .registry import backend_class, backend_layouts, get_backend, list_backends, rank_backend, rank_group

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "Availability",
    "Backend",
    "BackendUnavailableError",
    "CastPolicy",
    "DeviceInfo",
    "FrozenEncoder",
    "HeadStep",
    "MemoryUse",
    "ShapeGrid",
    "UnitRate",
    "backend_class",
    "backend_layouts",
    "get_backend",
    "list_backends",
    "rank_backend",
    "rank_group",
]
