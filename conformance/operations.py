"""Cases of the group "operations"."""

from __future__ import annotations

from .case import Case


def cases() -> list[Case]:
    """Every case of this group."""
    return []
