"""Where isotrain keeps what it need not make twice."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "ISOTRAIN_CACHE"


def cache_root() -> Path:
    """Where caches live: the folder that ``ISOTRAIN_CACHE`` names, else ``~/.cache/isotrain``."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "isotrain"
