"""The frozen encoder in native code: AMX and AVX-512 BF16."""

from __future__ import annotations

from .encoder import NativeEncoder

__all__ = ["NativeEncoder"]
