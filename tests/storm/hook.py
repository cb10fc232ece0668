"""Every event at which a process touches the disk's names, seen through Python's audit hooks."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NAMES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.utime",
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def on_file_events(folder: Path, act: Callable[[int, str], None]) -> Callable[[], None]:
    """For `start`'s `prepare`: calls act(number, what) before each change of a name or opening for writing in `folder`.

    An error that `act` raises takes the event's place: the system call fails with it.
    """

    def prepare() -> None:
        state = {"count": 0, "busy": False}

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if state["busy"] or not _counts(event, arguments, str(folder)):
                return
            state["count"] += 1
            state["busy"] = True
            try:
                act(state["count"], f"{event} {arguments[0]}")
            finally:
                state["busy"] = False

        sys.addaudithook(hook)

    return prepare


def kill_before(number: int) -> Callable[[int, str], None]:
    """Ends the process before its event `number`, as ``kill -9`` would."""

    def act(count: int, what: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def fail_at(numbers: range, reason: int) -> Callable[[int, str], None]:
    """Lets the events `numbers` fail with the error number `reason`."""

    def act(count: int, what: str) -> None:
        if count in numbers:
            raise OSError(reason, os.strerror(reason))

    return act


def write_count(file: Path) -> Callable[[int, str], None]:
    """Keeps what the events were in `file`, one a line."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)

    def act(count: int, what: str) -> None:
        os.write(descriptor, f"{count} {what}\n".encode(errors="replace"))

    return act


def _counts(event: str, arguments: tuple[Any, ...], folder: str) -> bool:
    if event == "open":
        flags = arguments[2]
        if not isinstance(flags, int) or not flags & _WRITES:
            return False
    elif event not in _NAMES:
        return False
    path = arguments[0]
    if not isinstance(path, (str, bytes, os.PathLike)):
        return False
    text = os.fsdecode(path)
    # Relative to the folder, which is the current one, or to one below it.
    return not text.startswith("/") or text.startswith(folder)
