"""What a process does when its parent is gone without a word, for example killed with -9.

A training process is asked to stop, as by SIGTERM. A worker that only serves its parent ends at once, with everything
it started. This file needs no torch, so that the watch begins before torch's long import.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

log = logging.getLogger("isotrain")

# The environment variable with the open end of a pipe. Only the parent has the other end.
LIFELINE = "ISOTRAIN_LIFELINE"

_THREAD = "isotrain-launcher-watch"
_SECONDS = 1.0


def stop_with_launcher() -> None:
    """If a launcher such as torchrun started this process with others, sends SIGTERM to itself once that is gone.

    Calling it again changes nothing.
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
    """Whether the launcher was gone before the watch began: the parent is init, but the session is not our own.

    torchrun's processes have their own sessions. They notice that its store is gone too.
    """
    return os.getppid() == 1 and os.getsid(0) not in (os.getpid(), os.getsid(1))


def _launchers() -> tuple[int, ...]:
    """The parent of this process and, if torchrun gave it a session of its own, the parent of the session's leader.

    The second is torchrun itself if a script runs in between.
    """
    leader = os.getsid(0)
    if "TORCHELASTIC_RUN_ID" not in os.environ or leader == os.getpid():
        return (os.getppid(),)
    try:
        # The name in parentheses may contain spaces.
        fields = Path(f"/proc/{leader}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return (os.getppid(),)
    return os.getppid(), int(fields[1])


def end_with_parent() -> None:
    """Ends a worker's process group once the parent is gone, without waking up before."""
    descriptor = os.environ.pop(LIFELINE, None)
    if descriptor is not None:
        threading.Thread(target=_hold, args=(int(descriptor),), name="isotrain-lifeline", daemon=True).start()


def _hold(descriptor: int) -> None:
    os.read(descriptor, 1)
    # The worker leads its own process group, which contains everything it started.
    os.killpg(os.getpgrp(), signal.SIGKILL)
