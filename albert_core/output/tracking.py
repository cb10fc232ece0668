"""Where a run's figures go: always ``metrics.jsonl``, and the trackers that are configured."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...kernels.install import install_hint
from ..config.parsing import parse_json
from ..config.schema import TrainConfig
from ..runs.files import append_text, write_bytes
from ..terminal.text import error_line
from .trackers.base import Line, TrackedRun, Tracker, plain_value
from .trackers.registry import BUILT_IN, tracker_class

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class JsonlTracker(Tracker):
    """One JSON object per line, ``{"step": 10, "epoch": 0.5, "train/loss": 1.25}``, readable during the run.

    JSON has no NaN and no infinities. They are the strings "NaN", "Infinity" and "-Infinity", which Python's
    ``float()`` and JavaScript's ``Number()`` convert back. This is the run's own record, so a failure to write is a
    UserError. `caveat`, the backend's, is in every line as ``device`` unless it is empty.
    """

    required = True

    def __init__(self, path: Path, caveat: str = "") -> None:
        self.path = path
        self._every_line = {"device": caveat} if caveat else {}

    def truncate_after(self, step: int, *, evaluated: bool = True) -> tuple[int, list[Line]]:
        """Drops the lines of later steps, which a resume from `step` writes again, and a line cut off by a kill.

        Without `evaluated`, the evaluation of `step` is still to be made and is dropped too. The file is replaced in
        one move. Other lines that aren't JSON are dropped with a warning.

        Returns:
            The last step with all its lines, and the remaining lines.
        """
        if not self.path.exists():
            return step, []
        lines = self.path.read_bytes().splitlines()
        until, kept, read = step, [], []
        for number, line in enumerate(lines, start=1):
            try:
                values = parse_json(line.decode(), self.path, "", number)
                if values["step"] < step or (values["step"] == step and (evaluated or "eval/loss" not in values)):
                    kept.append(line + b"\n")
                    read.append(values)
                elif values["step"] == step:
                    until = step - 1
            except (ValueError, KeyError, TypeError):
                level = logging.INFO if number == len(lines) else logging.WARNING
                logger.log(level, "%s:%d is no line of figures; it is dropped", self.path, number)
        write_bytes(self.path, b"".join(kept))
        return until, read

    def log(self, step: int, values: dict[str, Any]) -> None:
        plain = {name: plain_value(value) for name, value in values.items()}
        line = json.dumps({"step": step, **self._every_line, **plain}, allow_nan=False)
        append_text(self.path, line + "\n")


class Trackers(Tracker):
    """All trackers of a run as one. If one fails that isn't required, it warns once and is dropped."""

    def __init__(self, trackers: Iterable[Tracker] = ()) -> None:
        self._trackers = list(trackers)

    def watch(self, module: nn.Module) -> None:
        self._each("watch", lambda tracker: tracker.watch(module))

    def before_step(self, step: int) -> None:
        self._each(f"weights of step {step}", lambda tracker: tracker.before_step(step))

    def log(self, step: int, values: dict[str, Any]) -> None:
        self._each(f"log of step {step}", lambda tracker: tracker.log(step, values))

    def summary(self, values: dict[str, Any]) -> None:
        self._each("summary", lambda tracker: tracker.summary(values))

    def artifact(self, path: Path) -> None:
        self._each(f"upload of {path}", lambda tracker: tracker.artifact(path))

    def finish(self, status: str) -> None:
        self._each("finish", lambda tracker: tracker.finish(status))

    def _each(self, what: str, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            # Trackers use services through libraries whose exceptions have no common base class, and none of these
            # errors is worth a training run.
            except Exception as error:
                if tracker.required:
                    raise
                self._trackers.remove(tracker)
                name = type(tracker).__name__
                logger.warning("%s failed at %s (%s); the run continues without it", name, what, error_line(error))


def make_trackers(
    config: TrainConfig, run_dir: Path, resume_step: int | None = None, caveat: str = "", *, evaluated: bool = True
) -> Trackers:
    """Builds the trackers that `config` asks for.

    If a tracker's package is missing or its service refuses, this warns once with the fix and continues without it.

    Args:
        run_dir: The run's folder, which must exist.
        resume_step: The step that a resumed run continues from. What was logged after it is dropped. Trackers get what
            they lack of the rest.
        caveat: The backend's. Charts show it in the run's name.
        evaluated: Whether the evaluation of `resume_step` was made. Otherwise it is dropped too.

    Raises:
        UserError: There is no tracker of a name, or its package doesn't register a tracker.
    """
    metrics = JsonlTracker(run_dir / METRICS_FILE, caveat)
    until, lines = (None, []) if resume_step is None else metrics.truncate_after(resume_step, evaluated=evaluated)
    name = (config.wandb_run_name or run_dir.name) + (f" on {caveat}" if caveat else "")
    run = TrackedRun(config, run_dir, name, caveat, until, lines)
    opened = [_opened(tracker, run) for tracker in config.tracker_names]
    return Trackers([metrics, *(tracker for tracker in opened if tracker is not None)])


def _opened(name: str, run: TrackedRun) -> Tracker | None:
    """The tracker called `name`, or None and one warning."""
    kind = tracker_class(name)
    try:
        return kind(run)
    except ImportError as error:
        fix = install_hint(name) if name in BUILT_IN else "install the package that it needs"
        logger.warning("tracker %s can't be imported (%s): %s; the run continues without it", name, error, fix)
    # As in Trackers: a service that can't be reached is no reason not to train.
    except Exception as error:  # noqa: BLE001
        logger.warning("tracker %s can't be opened (%s); the run continues without it", name, error_line(error))
    return None
