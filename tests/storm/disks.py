"""Disks that are full, out of inodes or limited in file size, and file events that fail: told once, nothing lost."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

from .going_on import judged, to_the_end
from .hook import fail_at, on_file_events
from .job import BEGIN, GO_ON, Home
from .judge import Outcome, Verdict, first_bad, spoke
from .process import Ended

# What a run without limits needs, with room to spare.
_PLENTY = "size=64m,nr_inodes=10000"
_NEW_MOUNTS = 0x20000
# Reasons for which a system refuses a write; those that mean a full disk fail the run, the others the input.
REASONS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS)
_MOST_EVENTS = 160


def plan(home: Home, tries: int) -> list[int]:
    del home
    return list(range(1, tries + 1))


def attempt(home: Home, number: int, chance: random.Random) -> Outcome:
    """By turns: a full disk, no inodes left, a limit of file sizes, and file events that fail."""
    resumed = chance.random() < 0.3
    command = GO_ON if resumed else BEGIN
    harm = (_full, _few_inodes, _small_files, _failing)[number % 4]
    mounts = harm in (_full, _few_inodes)
    if mounts and not may_mount():
        return Outcome(Verdict.SKIPPED, "no right to mount a disk")
    with _mounted(home.folder) if mounts else nullcontext():
        if resumed:
            home.stopped()
        else:
            home.clear()
        return _judged(home, harm(home, command, chance))


def _judged(home: Home, ended: Ended) -> Outcome:
    """Done all the same, or one line and exit code 1 (2 where a folder may not be written); then on to the end."""
    if ended.code == 0:
        return judged(home, ended)
    outcome = spoke(ended, (1, 2))
    return first_bad(outcome, to_the_end(home, ended if home.run.exists() else None))


def _full(home: Home, command: tuple[str, ...], chance: random.Random) -> Ended:
    return _limited(home, command, f"size={_used(home.folder) + chance.randrange(4, 400) * 1024}")


def _few_inodes(home: Home, command: tuple[str, ...], chance: random.Random) -> Ended:
    there = sum(1 for _ in home.folder.rglob("*")) + 1
    return _limited(home, command, f"nr_inodes={there + chance.randrange(1, 50)}")


def _limited(home: Home, command: tuple[str, ...], limit: str) -> Ended:
    _remount(home.folder, limit)
    ended = home.isotrain(command)
    _remount(home.folder, _PLENTY)
    return ended


def _small_files(home: Home, command: tuple[str, ...], chance: random.Random) -> Ended:
    size = chance.choice((1, 3, 5, 9, 15, 40)) * 1024

    def limit() -> None:
        # The streams must stay writable: they stand for a terminal.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 12 * 1024, resource.RLIM_INFINITY))

    return home.isotrain(command, limit)


def _failing(home: Home, command: tuple[str, ...], chance: random.Random) -> Ended:
    """From one event on a few or all of them fail."""
    first = chance.randrange(1, _MOST_EVENTS)
    events = range(first, first + chance.choice((1, 1, 2, 5, 10_000)))
    return home.isotrain(command, on_file_events(home.folder, fail_at(events, chance.choice(REASONS))))


@cache
def may_mount() -> bool:
    """Whether this process may mount a disk; it then does so in a name space of its own, which dies with it."""
    if os.geteuid() != 0 or ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS) != 0:
        return False
    private = subprocess.run(["mount", "--make-rprivate", "/"], check=False, capture_output=True)
    return private.returncode == 0


@contextmanager
def _mounted(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", _PLENTY, "storm", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def _used(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize
