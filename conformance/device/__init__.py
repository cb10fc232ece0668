"""Checks of what every backend does, whatever it computes: placing, waiting, remembering, counting and refusing."""

from __future__ import annotations

from ..case import Case
from . import counting, placing, promises, waiting


def cases() -> list[Case]:
    """Every case of this group."""
    return [case for room in (promises, placing, waiting, counting) for case in room.check.cases]
