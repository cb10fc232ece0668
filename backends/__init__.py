"""The devices isotrain can train on, behind one interface."""

from __future__ import annotations

from .base import Backend
from .error_budget import ErrorBudget
from .protocols import FrozenEncoder, FrozenForward, HeadStep, PackedAttention, TrainedEncoder
from .registry import (
    backend_class,
    backend_traits,
    caveat,
    check_available,
    get_backend,
    import_devices_late,
    is_built_in,
    list_backends,
    options_model,
    options_models,
    options_section,
    rank_backend,
    read_section,
    resolve,
)
from .traits import UNTESTED, Traits
from .tt.former import renamed
from .types import (
    COMPILE_MODES,
    COMPILED_LAYOUTS,
    DTYPES,
    EIGHT_BIT,
    LAYOUTS,
    PADDED_KERNELS,
    Availability,
    BackendUnavailableError,
    CastPolicy,
    CompileMode,
    DeviceInfo,
    EnergyUse,
    MemoryUse,
    ShapeGrid,
    UnitRate,
)

__all__ = [
    "COMPILED_LAYOUTS",
    "COMPILE_MODES",
    "DTYPES",
    "EIGHT_BIT",
    "LAYOUTS",
    "PADDED_KERNELS",
    "UNTESTED",
    "Availability",
    "Backend",
    "BackendUnavailableError",
    "CastPolicy",
    "CompileMode",
    "DeviceInfo",
    "EnergyUse",
    "ErrorBudget",
    "FrozenEncoder",
    "FrozenForward",
    "HeadStep",
    "MemoryUse",
    "PackedAttention",
    "ShapeGrid",
    "TrainedEncoder",
    "Traits",
    "UnitRate",
    "backend_class",
    "backend_traits",
    "caveat",
    "check_available",
    "get_backend",
    "import_devices_late",
    "is_built_in",
    "list_backends",
    "options_model",
    "options_models",
    "options_section",
    "rank_backend",
    "read_section",
    "renamed",
    "resolve",
]
