"""Trackio, in its own folder or on a Hugging Face Space."""

from __future__ import annotations

import logging
import secrets
import shlex
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from ...runs.files import write_text
from .base import TrackedRun, Tracker, figures, lacking, numbers

logger = logging.getLogger(__name__)

NAME_FILE = "trackio-run-name"


class TrackioTracker(Tracker):
    """A Trackio run (extra `trackio`) in the project `wandb_project`, wherever Trackio's own settings say
    (``TRACKIO_DIR``, ``TRACKIO_SPACE_ID``).

    Trackio finds runs by name, so the name gets an ending of its own, and is kept in the run's folder. A resumed run
    continues it. Trackio can't withdraw the figures of steps that a resumed run makes again. Raises ImportError if
    trackio is not installed, and Trackio's own errors if the run can't be opened.
    """

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._trackio = trackio
        kept = run.folder / NAME_FILE
        if not kept.is_file():
            write_text(kept, f"{run.name}-{secrets.token_hex(2)}")
        name = kept.read_text(encoding="utf-8")
        project = run.config.wandb_project
        # stdout is the command's own.
        with redirect_stdout(StringIO()):
            self._run = trackio.init(project, name=name, config=run.config.model_dump(), resume="allow", embed=False)
        logger.info("trackio run %s: trackio show --project %s", name, shlex.quote(project))
        # Trackio's interface doesn't give back what was logged, but it counts steps on from the last one.
        last = self._run._next_step - 1
        had = {(name, line["step"]) for line in run.lines if line["step"] <= last for name in numbers(line)}
        for line in lacking(run, had | {("step", last)}, "Trackio"):
            self.log(line["step"], figures(line))

    def log(self, step: int, values: dict[str, Any]) -> None:
        self._run.log(values, step=step)

    def finish(self, status: str) -> None:
        del status
        with redirect_stdout(StringIO()):
            self._trackio.finish()
