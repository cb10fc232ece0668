"""What a process does when the one that started it is gone: killed with -9, it could not say so.

A process that trains is asked to stop, as by SIGTERM. A worker that only serves its parent ends at once, with all that
it started. Needs no torch: the watch begins before the seconds that its import takes.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

log = logging.getLogger("isotrain")

# The environment variable that names the open end of a pipe whose other end only the parent has.
LIFELINE = "ISOTRAIN_LIFELINE"

_THREAD = "isotrain-launcher-watch"
_SECONDS = 1.0


def stop_with_launcher() -> None:
    """Where torchrun or another launcher started this process with others: SIGTERM to itself once that one is gone.

    Called again, it changes nothing.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    if any(thread.name == _THREAD for thread in threading.enumerate()):
        return
    launchers = () if _is_orphan() else _launchers()
    threading.Thread(target=_watch, args=(launchers,), name=_THREAD, daemon=True).start()


def _watch(launchers: tuple[int, ...]) -> None:
    while _launchers() == launchers:
        time.sleep(_SECONDS)
    log.warning("the launcher of this process is gone: it stops, as by SIGTERM")
    os.kill(os.getpid(), signal.SIGTERM)


def _is_orphan() -> bool:
    """Whether the launcher was gone before the watch began: init is the parent, of a session that isn't its own.

    torchrun's processes have sessions of their own; those find its store gone, too.
    """
    return os.getppid() == 1 and os.getsid(0) not in (os.getpid(), os.getsid(1))


def _launchers() -> tuple[int, ...]:
    """This process's parent and, where torchrun gave it a session of its own, the parent of the session's first.

    The second is torchrun where a script stands between.
    """
    leader = os.getsid(0)
    if "TORCHELASTIC_RUN_ID" not in os.environ or leader == os.getpid():
        return (os.getppid(),)
    try:
        # The name, in brackets, may hold spaces.
        fields = Path(f"/proc/{leader}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return (os.getppid(),)
    return os.getppid(), int(fields[1])


def end_with_parent() -> None:
    """In a worker: ends its process group once the parent is gone, without waking up before."""
    descriptor = os.environ.pop(LIFELINE, None)
    if descriptor is not None:
        threading.Thread(target=_hold, args=(int(descriptor),), name="isotrain-lifeline", daemon=True).start()


def _hold(descriptor: int) -> None:
    os.read(descriptor, 1)
    # The worker leads a group of its own, in which is whatever it started.
    os.killpg(os.getpgrp(), signal.SIGKILL)
