"""Devices that break one clause each, in a way that a real one might, and right ones that look suspicious.

They are the host with one member replaced. `CLAUSE` of each is the check that must catch it.
"""

from __future__ import annotations

from . import base, counting, fences, placing, promises
from .base import Mutant

MUTANTS: list[type[Mutant]] = [
    kind
    for group in (placing, fences, counting, promises, base)
    for kind in vars(group).values()
    if isinstance(kind, type) and issubclass(kind, Mutant) and kind is not Mutant and kind.__module__ == group.__name__
]
