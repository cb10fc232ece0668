"""Finds what W&B and TensorBoard lack of a resumed run: lines of metrics.jsonl that a kill kept from them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runs.files import write_text

logger = logging.getLogger(__name__)

Line = dict[str, Any]

# In W&B's folder: the last step that this part of the run logged, written once everything is on disk.
_ENDED_FILE = "isotrain-logged-until"


def figures(line: Line) -> Line:
    """What a tracker gets of a line of metrics.jsonl: no step, no device, and non-finite numbers as numbers again."""
    return {
        name: float(value) if value in ("NaN", "Infinity", "-Infinity") else value
        for name, value in line.items()
        if name not in ("step", "device")
    }


def lacking_in_wandb(run_dir: Path, wandb_id: str, until: int, lines: Sequence[Line]) -> list[Line]:
    """Those of `lines` that W&B lacks, if the run logs again after `until`. Call it before ``wandb.init``.

    W&B's service keeps the figures of an offline part in memory for long, and loses them when killed. A part that did
    not end by itself, or ended after `until`, is therefore set aside, and its lines count as lacking. An online or
    synchronised part can't be taken back, so a warning says that.
    """
    had = -1
    for folder in sorted((run_dir / "wandb").glob(f"*run-*-{wandb_id}")):
        if not folder.name.startswith(("run-", "offline-run-")):
            continue
        ended = folder / _ENDED_FILE
        last = int(ended.read_text(encoding="ascii")) if ended.is_file() else math.inf
        if last <= until:
            had = max(had, int(last))
        elif folder.name.startswith("run-") or list(folder.glob("*.synced")):
            logger.warning(
                "W&B has a part of this run that was killed, or went on after step %d (%s): some steps may be there "
                "twice or not at all; metrics.jsonl has each once",
                until,
                folder.name,
            )
            return []
        else:
            folder.rename(folder.with_name(f"set-aside-{folder.name}"))
            logger.info("%s is set aside; metrics.jsonl fills W&B up", folder)
    return [line for line in lines if line["step"] > had]


def wandb_ended(folder: Path, last_step: int) -> None:
    """Records in the folder of a part of a W&B run that everything up to `last_step` is on disk."""
    write_text(folder / _ENDED_FILE, str(last_step))


def lacking_in_tensorboard(folder: Path, until: int, lines: Sequence[Line]) -> list[Line]:
    """The first of `lines` that TensorBoard's event files in `folder` don't contain completely, and all lines after it.

    Steps after `until` count as missing. All later lines are returned, because TensorBoard treats a step back as a
    restart.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    if folder.is_dir():
        events.Reload()
    had = {(name, event.step) for name in events.Tags()[SCALARS] for event in events.Scalars(name)}
    for place, line in enumerate(lines):
        numbers = [name for name, value in figures(line).items() if isinstance(value, (int, float))]
        if line["step"] > until or any((name, line["step"]) not in had for name in numbers):
            first = line["step"]
            return [one for one in lines[:place] if one["step"] == first] + list(lines[place:])
    return []
