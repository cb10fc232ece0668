"""The packed encoder: tokens of many sequences end to end, no padding."""

from __future__ import annotations

from .batch import PackedBatch, PaddedBatch
from .portable import PortableEncoder

__all__ = ["PackedBatch", "PaddedBatch", "PortableEncoder"]
