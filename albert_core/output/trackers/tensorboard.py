"""TensorBoard event files in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .base import Line, TrackedRun, Tracker, numbers, plain_value


class TensorBoardTracker(Tracker):
    """TensorBoard event files (extra `tensorboard`).

    If the run is resumed, later events are marked as superseded, and missing lines are written again. Raises
    ImportError if tensorboard is not installed.
    """

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard" / run.caveat
        if run.until is None:
            self._writer = SummaryWriter(str(folder))
            return
        lacking = _lacking(folder, run.until, run.lines)
        self._writer = SummaryWriter(str(folder), purge_step=lacking[0]["step"] if lacking else run.until + 1)
        for line in lacking:
            self.log(line["step"], line)

    def log(self, step: int, values: dict[str, Any]) -> None:
        for name, value in numbers(values).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def summary(self, values: dict[str, Any]) -> None:
        text = json.dumps({name: plain_value(value) for name, value in values.items()}, indent=1, default=str)
        self._writer.add_text("summary", f"```\n{text}\n```")

    def finish(self, status: str) -> None:
        del status
        self._writer.close()


def _lacking(folder: Path, until: int, lines: Sequence[Line]) -> list[Line]:
    """The first of `lines` that the event files in `folder` don't contain completely, and all lines after it.

    Steps after `until` count as missing. All later lines are returned, because TensorBoard treats a step back as a
    restart.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    if folder.is_dir():
        events.Reload()
    had = {(name, event.step) for name in events.Tags()[SCALARS] for event in events.Scalars(name)}
    for place, line in enumerate(lines):
        if line["step"] > until or any((name, line["step"]) not in had for name in numbers(line)):
            first = line["step"]
            return [one for one in lines[:place] if one["step"] == first] + list(lines[place:])
    return []
