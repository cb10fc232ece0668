"""What a run shows while it works: a live view on a terminal (live.py), log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

from ..terminal.console import new_console

log = logging.getLogger("isotrain")


class Reporter(Protocol):
    """What the loop tells whoever watches."""

    def phase(self, name: str) -> Callable[[int, int], None] | None:
        """A callback ``(done, total)`` for a part of the preparation, or None when nobody watches."""
        ...

    def start(self, step: int, total_steps: int, label: str = "") -> None:
        """Training begins at `step`. `label`: what is trained, random weights and an emulated card named."""
        ...

    def update(self, step: int, values: dict[str, Any]) -> None: ...


class SilentReporter:
    """Nobody watches: the library's default."""

    def phase(self, name: str) -> None:
        del name

    def start(self, step: int, total_steps: int, label: str = "") -> None:
        del step, total_steps, label

    def update(self, step: int, values: dict[str, Any]) -> None:
        del step, values


class LineReporter:
    """A log line now and then, for pipes and files: what a bar would show, at most every `seconds`."""

    def __init__(self, seconds: float = 20.0) -> None:
        self._pause = int(seconds * 1e9)
        self._last = self._began = time.perf_counter_ns()
        self._first_step = self._total_steps = 0
        self._of = ""

    def _due(self) -> bool:
        now = time.perf_counter_ns()
        if now - self._last < self._pause:
            return False
        self._last = now
        return True

    def phase(self, name: str) -> Callable[[int, int], None]:
        began = time.perf_counter_ns()

        def advance(done: int, total: int) -> None:
            if done < total and self._due():
                left = (time.perf_counter_ns() - began) / 1e9 / done * (total - done)
                log.info("%s: %s of %s, about %.0f s left", name, f"{done:,}", f"{total:,}", left)

        return advance

    def start(self, step: int, total_steps: int, label: str = "") -> None:
        # A line is read without those before it: it says itself whose weights and which device its figures are of.
        self._of = f" ({label})" if label else ""
        self._first_step, self._total_steps = step, total_steps
        self._last = self._began = time.perf_counter_ns()

    def update(self, step: int, values: dict[str, Any]) -> None:
        if "train/loss" in values and self._due():
            taken = (time.perf_counter_ns() - self._began) / 1e9
            left = taken / max(1, step - self._first_step) * (self._total_steps - step)
            log.info(
                "step %d of %d: loss %.4f, %.0f samples/s, about %.0f s left%s",
                step,
                self._total_steps,
                values["train/loss"],
                values["samples_per_second"],
                left,
                self._of,
            )


@cache
def terminal() -> Any:
    """The one rich console on stderr: log lines and a bar that share it don't write into each other."""
    return new_console(stderr=True)


@contextmanager
def reporter_for_terminal() -> Iterator[Reporter]:
    """A live view when stderr is a terminal, lines elsewhere."""
    if not sys.stderr.isatty():
        yield LineReporter()
        return
    from .live import live_reporter

    with live_reporter(terminal()) as reporter:
        yield reporter
