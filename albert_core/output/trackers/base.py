"""What a tracker is, what it is opened with, and what it lacks of a resumed run."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config.schema import TrainConfig

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

Line = dict[str, Any]


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is opened with.

    Attributes:
        folder: The run's folder. A tracker that has files or an id of its own keeps them there.
        name: The run's name for its reader. It says if the device is emulated.
        caveat: The backend's caveat, or "".
        until: The step after which a resumed run logs again, or None for a new run.
        lines: A resumed run's lines in metrics.jsonl so far.
    """

    config: TrainConfig
    folder: Path
    name: str
    caveat: str = ""
    until: int | None = None
    lines: Sequence[Line] = ()


class Tracker:
    """What the loop calls. The methods do nothing by default.

    `values` maps names such as ``train/loss`` to numbers or strings. If a `required` tracker fails, the run ends. Other
    trackers are dropped with a warning.

    A tracker that a configuration names is made with a `TrackedRun`, of which it logs the lines that it lacks. If it
    raises ImportError, its package isn't installed.
    """

    required = False

    def __init__(self, run: TrackedRun) -> None:
        """Opens the tracker."""

    def watch(self, module: nn.Module) -> None:
        """Called once with the module that is trained, before the first step."""

    def before_step(self, step: int) -> None:
        """Called when the gradients of optimizer step `step` are complete but not yet applied."""

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Logs the figures of optimizer step `step`."""

    def summary(self, values: dict[str, Any]) -> None:
        """Logs the run's final figures."""

    def artifact(self, path: Path) -> None:
        """Logs the final model, a file or a folder."""

    def finish(self, status: str) -> None:
        """Ends the run: "completed", "stopped" (it can be resumed) or "failed"."""


def figures(line: Line) -> Line:
    """What a tracker gets of a line of metrics.jsonl: no step, no device, and non-finite numbers as numbers again."""
    return {
        name: float(value) if value in ("NaN", "Infinity", "-Infinity") else value
        for name, value in line.items()
        if name not in ("step", "device")
    }


def numbers(line: Line) -> dict[str, float]:
    """Those `figures` that are numbers."""
    plain = {name: _python_value(value) for name, value in figures(line).items()}
    return {name: float(value) for name, value in plain.items() if isinstance(value, (int, float))}


def _python_value(value: Any) -> Any:
    """`value`, and a 0-dimensional tensor or NumPy scalar as a number."""
    return value.item() if hasattr(value, "item") else value


def plain_value(value: Any) -> Any:
    """`value` as a JSON value: a 0-dimensional tensor or NumPy scalar as a number, non-finite numbers as strings."""
    number = _python_value(value)
    if isinstance(number, float) and not math.isfinite(number):
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return number


def lacking(run: TrackedRun, had: Collection[tuple[str, int]], service: str) -> list[Line]:
    """The lines of a resumed run with a number that a service lacks.

    Args:
        had: What the service has: names of figures, each with its step.
        service: Its name, for the warning that it has steps which the run makes again. It can't withdraw them.
    """
    if run.until is not None and any(step > run.until for _, step in had):
        logger.warning(
            "%s has figures of this run from after step %d: it gets them a second time; metrics.jsonl has each once",
            service,
            run.until,
        )
    return [line for line in run.lines if any((name, line["step"]) not in had for name in numbers(line))]
