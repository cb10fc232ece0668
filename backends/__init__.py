"""The devices isotrain can train on, behind one interface."""

from __future__ import annotations

from .base import (
    DTYPES,
    Availability,
    Backend,
    BackendUnavailableError,
    CastPolicy,
    DeviceInfo,
    FrozenEncoder,
    HeadStep,
    MemoryUse,
)
from .registry import backend_class, get_backend, list_backends

__all__ = [
    "DTYPES",
    "Availability",
    "Backend",
    "BackendUnavailableError",
    "CastPolicy",
    "DeviceInfo",
    "FrozenEncoder",
    "HeadStep",
    "MemoryUse",
    "backend_class",
    "get_backend",
    "list_backends",
]
