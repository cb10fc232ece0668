"""Where isotrain keeps what it need not make twice, and how it does without such a place."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

log = logging.getLogger("isotrain")

CACHE_VARIABLE = "ISOTRAIN_CACHE"


def cache_root() -> Path:
    """Where caches live: the folder that ``ISOTRAIN_CACHE`` names, else ``~/.cache/isotrain``.

    Raises RuntimeError where a home folder is needed and this user has none.
    """
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "isotrain"


def cache_folder(kind: str) -> Path | None:
    """The folder for cached things of one kind, such as "tokens".

    None where it is not there and can't be made, after one warning: a missing cache costs time, not the run.
    """
    try:
        root = cache_root()
    except RuntimeError:
        warn_uncached("there is no such home folder")
        return None
    folder = root / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        # Once for all kinds of one root.
        warn_uncached(f"{root}: {error.strerror}")
        return None
    return folder


@cache
def warn_uncached(reason: str) -> None:
    """Warns once in a process that nothing is kept for the next one, and says what mends that."""
    log.warning(
        "nothing is cached for the next run (%s); set %s to a folder that can be written", reason, CACHE_VARIABLE
    )


def settle_home() -> None:
    """Gives libraries that keep caches in a home folder another place where this user has none.

    They would make a folder called ``~`` in the current one. The place is removed when the process ends.
    """
    if os.path.expanduser("~") != "~" or "HF_HOME" in os.environ:  # noqa: PTH111 (Path.home() raises here)
        return
    folder = tempfile.mkdtemp(prefix="isotrain-home-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["HF_HOME"] = folder
