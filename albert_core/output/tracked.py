"""What W&B and TensorBoard lack of a run that is resumed: lines of metrics.jsonl that a kill kept from them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runs.files import write_text

logger = logging.getLogger(__name__)

Line = dict[str, Any]

# In a folder of W&B's: the last step that its part of the run logged, written once all of it is on the disk.
_ENDED_FILE = "isotrain-logged-until"


def figures(line: Line) -> Line:
    """What a tracker is given of a line of metrics.jsonl: no step, no device, non-finite numbers as numbers again."""
    return {
        name: float(value) if value in ("NaN", "Infinity", "-Infinity") else value
        for name, value in line.items()
        if name not in ("step", "device")
    }


def lacking_in_wandb(run_dir: Path, wandb_id: str, until: int, lines: Sequence[Line]) -> list[Line]:
    """Those of `lines` that W&B does not have, where the run logs anew after `until`; call it before ``wandb.init``.

    W&B's service keeps an offline part's figures in memory for long, and a kill takes them along. So a part that did
    not end by itself, or that ended after `until`, is set aside, and its lines count as lacking. What was online, or
    is synchronised, can't be taken back: a warning says so.
    """
    had = 0
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
    """Notes in the folder of a part of a W&B run that all up to `last_step` is on the disk."""
    write_text(folder / _ENDED_FILE, str(last_step))


def lacking_in_tensorboard(folder: Path, until: int, lines: Sequence[Line]) -> list[Line]:
    """The first of `lines` that TensorBoard's event files in `folder` don't have whole, and all after it.

    Of steps after `until` they count as having nothing. All, because TensorBoard takes a step back for a restart there.
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
