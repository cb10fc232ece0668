"""Operations of torch on a device, against float64, within the error budget that follows from the cast policy."""

from __future__ import annotations

from .listed import cases

__all__ = ["cases"]
