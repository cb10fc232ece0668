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
    "HeadStep",
    "MemoryUse",
    "ShapeGrid",
    "backend_class",
    "backend_layouts",
    "get_backend",
    "list_backends",
]
