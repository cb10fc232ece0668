"""Processes that train one run together, started as torchrun would."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from support import forks


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    return {**os.environ, "MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in told.items()}}


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def children(pid: int) -> list[int]:
    """The processes that `pid`'s first thread started and that are there, zombies too, oldest first."""
    found = []
    with suppress(FileNotFoundError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(FileNotFoundError):
                if Path(f"/proc/{child}/comm").read_text().strip() != forks.SERVER_NAME:
                    found.append(int(child))
    return found


def start(size: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """`size` processes of one run, without torchrun: what ends one of them is then the others' doing."""
    port = free_port()
    return [
        forks.Popen(
            list(arguments), env=environment(rank, size, port), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(size)
    ]


def end(
    processes: list[subprocess.Popen[str]], others: Iterable[subprocess.Popen[str]] = (), timeout: float = 240
) -> list[tuple[int, str]]:
    """(exit code, output) of each, once they end by themselves; none outlives the test, `others` neither."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in (*processes, *others):
            process.kill()
        for process in others:
            process.communicate()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]
