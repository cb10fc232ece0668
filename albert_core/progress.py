"""What a run shows while it works: a progress bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

log = logging.getLogger("isotrain")


class Reporter(Protocol):
    """What the loop tells whoever watches."""

    def phase(self, name: str) -> Callable[[int, int], None] | None:
        """A callback ``(done, total)`` for a part of the preparation, or None when nobody watches."""
        ...

    def start(self, step: int, total_steps: int) -> None: ...

    def update(self, step: int, values: dict[str, Any]) -> None: ...


class SilentReporter:
    """Nobody watches: the library's default."""

    def phase(self, name: str) -> None:
        del name

    def start(self, step: int, total_steps: int) -> None:
        del step, total_steps

    def update(self, step: int, values: dict[str, Any]) -> None:
        del step, values


class LineReporter:
    """A log line now and then, for pipes and files: what a bar would show, at most every `seconds`."""

    def __init__(self, seconds: float = 20.0) -> None:
        self._pause = int(seconds * 1e9)
        self._last = self._began = time.perf_counter_ns()
        self._first_step = self._total_steps = 0

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

    def start(self, step: int, total_steps: int) -> None:
        self._first_step, self._total_steps = step, total_steps
        self._last = self._began = time.perf_counter_ns()

    def update(self, step: int, values: dict[str, Any]) -> None:
        if "train/loss" in values and self._due():
            taken = (time.perf_counter_ns() - self._began) / 1e9
            left = taken / max(1, step - self._first_step) * (self._total_steps - step)
            log.info(
                "step %d of %d: loss %.4f, %.0f samples/s, about %.0f s left",
                step,
                self._total_steps,
                values["train/loss"],
                values["samples_per_second"],
                left,
            )


# Short enough for 80 columns; evaluations have log lines of their own.
_SHOWN = {"train/loss": "loss {:.4f}", "samples_per_second": "{:,.0f} samples/s"}


class BarReporter:
    """rich progress bars on stderr."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._training: Any = None
        self._latest: dict[str, str] = {}

    def phase(self, name: str) -> Callable[[int, int], None]:
        task = None

        def advance(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = self._progress.add_task(name, total=total, note="")
            self._progress.update(task, completed=done)

        return advance

    def start(self, step: int, total_steps: int) -> None:
        self._training = self._progress.add_task("train", total=total_steps, completed=step, note="")

    def update(self, step: int, values: dict[str, Any]) -> None:
        self._latest |= {key: form.format(values[key]) for key, form in _SHOWN.items() if key in values}
        self._progress.update(self._training, completed=step, note="  ".join(self._latest.values()))


@cache
def terminal() -> Any:
    """The one rich console on stderr: log lines and a bar that share it don't write into each other."""
    from rich.console import Console

    class LastingConsole(Console):
        """Goes quiet when its reader has gone (`isotrain train ... 2>&1 | head`): a run is worth more than its log."""

        def on_broken_pipe(self) -> None:
            self.quiet = True

    return LastingConsole(stderr=True)


@contextmanager
def reporter_for_terminal() -> Iterator[Reporter]:
    """A bar when stderr is a terminal, lines elsewhere."""
    if not sys.stderr.isatty():
        yield LineReporter()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=terminal()) as progress:
        yield BarReporter(progress)
