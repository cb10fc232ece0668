"""The cache folder, and what happens without one."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import tempfile
from functools import cache
from pathlib import Path

log = logging.getLogger("isotrain")

CACHE_VARIABLE = "ISOTRAIN_CACHE"


def cache_root() -> Path:
    """The folder that ``ISOTRAIN_CACHE`` names, else ``~/.cache/isotrain``.

    Raises:
        RuntimeError: A home folder is needed, and this user has none.
    """
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "isotrain"


def cache_folder(kind: str) -> Path | None:
    """The cache folder of one kind, such as "tokens".

    Returns:
        None, after one warning, if it can't be made: a missing cache costs time, but doesn't end the run.
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


def publish(path: Path, data: bytes) -> None:
    """Writes a new file of the cache, whole or not at all.

    Raises:
        FileExistsError: Another process was first.
        OSError: It can't be written.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@cache
def warn_uncached(reason: str) -> None:
    """Warns once per process that nothing is cached, and how to fix it."""
    log.warning(
        "nothing is cached for the next run (%s); set %s to a folder that can be written", reason, CACHE_VARIABLE
    )


def settle_home() -> None:
    """If this user has no home folder, gives libraries another folder for their caches.

    Otherwise they would make a folder called ``~`` in the current one. It is removed when the process ends.
    """
    if os.path.expanduser("~") != "~" or "HF_HOME" in os.environ:  # noqa: PTH111 (Path.home() raises here)
        return
    folder = tempfile.mkdtemp(prefix="isotrain-home-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["HF_HOME"] = folder
