"""What a run shows while it works: a progress bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


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


class BarReporter:
    """rich progress bars on stderr."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._training: Any = None

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
        shown = {
            "train/loss": "loss {:.4f}",
            "samples_per_second": "{:,.0f} samples/s",
            "eval/accuracy": "accuracy {:.4f}",
        }
        note = "  ".join(form.format(values[key]) for key, form in shown.items() if key in values)
        self._progress.update(self._training, completed=step, note=note or None)


@contextmanager
def reporter_for_terminal() -> Iterator[Reporter]:
    """A bar when stderr is a terminal; otherwise silence, and the log lines say what happens."""
    if not sys.stderr.isatty():
        yield SilentReporter()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield BarReporter(progress)
