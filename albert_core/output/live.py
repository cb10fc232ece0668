"""The live view of a training run on a terminal: bars, the loss and its curve, throughput.

Evaluations are rows of the log above it.

It uses only what the loop logs anyway, is drawn four times a second, and never asks the device for anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from .progress import LineReporter, Reporter, terminal

FRAMES_PER_SECOND = 4
BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS = 32
# The weight of the past in a smoothed loss: about the last ten log lines count.
MEMORY = 0.9


class Smoothed:
    """An exponential moving mean with the bias correction of Adam (Kingma and Ba 2015)."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float) -> float:
        """Adds a value and returns the mean so far."""
        self._sum = MEMORY * self._sum + (1 - MEMORY) * value
        self._weight = MEMORY * self._weight + (1 - MEMORY)
        return self._sum / self._weight


class History:
    """A curve of any length as at most `2 * SPARKS` means of equally many values each."""

    def __init__(self) -> None:
        self._means: list[float] = []
        self._rest: list[float] = []
        self._stretch = 1

    def add(self, value: float) -> None:
        self._rest.append(value)
        if len(self._rest) < self._stretch:
            return
        self._means.append(sum(self._rest) / len(self._rest))
        self._rest = []
        if len(self._means) == 2 * SPARKS:
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means = [(one + other) / 2 for one, other in pairs]
            self._stretch *= 2

    def sparks(self) -> str:
        """The whole curve as at most `SPARKS` blocks. The lowest value is the lowest block."""
        step = -(-len(self._means) // SPARKS) or 1
        values = [sum(part) / len(part) for part in _parts(self._means, step)]
        return as_blocks(values) if len(values) > 1 else ""


def as_blocks(values: Sequence[float]) -> str:
    """One block per value, from the lowest block for the lowest value to the highest for the highest."""
    low, high = min(values), max(values)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in values)


def _parts(values: list[float], size: int) -> Iterator[list[float]]:
    return (values[start : start + size] for start in range(0, len(values), size))


class LiveReporter(Reporter):
    """A reporter that rich can draw."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("ETA", markup=False),
            TimeRemainingColumn(),
        )
        self._training: TaskID | None = None
        self._label = ""
        self._values: dict[str, Any] = {}
        self._smoothed, self._history = Smoothed(), History()
        self._mean: float | None = None

    def phase(self, name: str) -> Callable[[int, int], None]:
        task: TaskID | None = None

        def advance(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = self.progress.add_task(name, total=total)
            self.progress.update(task, completed=done)

        return advance

    def start(self, step: int, total_steps: int, label: str = "") -> None:
        self._training = self.progress.add_task("train", total=total_steps, completed=step)
        self._label = label

    def update(self, step: int, values: dict[str, Any]) -> None:
        if self._training is not None:
            self.progress.update(self._training, completed=step)
        if "train/loss" in values:
            self._values = values
            self._mean = self._smoothed.add(values["train/loss"])
            self._history.add(self._mean)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield self.progress
        parts = [Text(self._label, style="dim")] if self._label else []
        if self._mean is not None:
            parts.append(self._losses(sparks=not options.ascii_only))
        yield Group(*parts)

    def _losses(self, sparks: bool) -> Text:
        values = self._values
        words = f"loss {values['train/loss']:.4f}  smoothed {self._mean:.4f}"
        if sparks:
            words += f"  {self._history.sparks()}"
        words += f"\n{values['samples_per_second']:,.0f} samples/s  learning rate {values['learning_rate']:.2e}"
        return Text(words)


@contextmanager
def live_reporter(console: Console) -> Iterator[LiveReporter]:
    """A reporter at the bottom of `console`, below its log lines."""
    reporter = LiveReporter()
    with Live(reporter, console=console, refresh_per_second=FRAMES_PER_SECOND):
        yield reporter


@contextmanager
def reporter_for_terminal() -> Iterator[Reporter]:
    """A live view if stderr is a terminal, else log lines."""
    if not sys.stderr.isatty():
        yield LineReporter()
        return
    with live_reporter(terminal()) as reporter:
        yield reporter
