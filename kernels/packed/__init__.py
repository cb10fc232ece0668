"""The packed encoder: sequences are concatenated, without padding."""

from __future__ import annotations

from .batch import PackedBatch, PaddedBatch
from .portable import PortableEncoder

__all__ = ["PackedBatch", "PaddedBatch", "PortableEncoder"]
