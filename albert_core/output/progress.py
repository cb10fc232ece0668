"""What a run shows while it works: a live view on a terminal (live.py), or log lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from ..terminal.console import new_console

log = logging.getLogger("isotrain")


class Reporter:
    """Receives the progress of a run. This one shows nothing, the default when isotrain is used as a library."""

    def phase(self, name: str) -> Callable[[int, int], None] | None:
        """A callback ``(done, total)`` for a part of the preparation, or None if nothing is shown."""

    def start(self, step: int, total_steps: int, label: str = "") -> None:
        """Training begins at `step`. `label` names what is trained, with random weights and the backend's caveat."""

    def update(self, step: int, values: dict[str, Any]) -> None:
        """Called with what is logged of a step."""


class LineReporter(Reporter):
    """An occasional log line for pipes and files with what a bar would show, at most one per `seconds`."""

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
        # A line may be read without the ones before it, so each says which weights and device its figures belong to.
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


def fits_terminal(line: str) -> bool:
    """Whether the terminal shows a line of the log without a break. A file or a pipe does."""
    console = terminal()
    return not console.is_terminal or len(line) <= console.width


@cache
def terminal() -> Any:
    """The only rich console on stderr, so that log lines and a bar don't overwrite each other."""
    return new_console(stderr=True)
