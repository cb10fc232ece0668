"""A pickle that does something."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Bomb:
    """Makes the file `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)
