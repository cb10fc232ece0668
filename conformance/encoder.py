"""Cases of the group "encoder"."""

from __future__ import annotations

from .case import Case


def cases() -> list[Case]:
    """Every case of this group."""
    return []
