"""Weights & Biases, online or offline."""

from __future__ import annotations

import logging
import math
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runs.files import write_text
from .base import Line, TrackedRun, Tracker, figures

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

WANDB_ID_FILE = "wandb-run-id"
# In W&B's folder: the last step that this part of the run logged, written once everything is on disk.
_ENDED_FILE = "isotrain-logged-until"


class WandbTracker(Tracker):
    """A Weights & Biases run (extra `wandb`). wandb's own setting ``WANDB_MODE`` makes it online, offline or disabled.

    Its id is kept in the run directory, so a resumed run continues the same W&B run. Steps are logged as the value
    ``step``, the x axis of every chart, because W&B's own counter can't go back, as a resume must. `wandb_watch_mode`
    records histograms every `wandb_log_freq` steps under the names of ``wandb.watch``, but without its hooks, where an
    exception (W&B's service was killed) would propagate through forward or backward. Raises ImportError if wandb is not
    installed, and wandb's own errors if the run can't be opened.
    """

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        # A folder called wandb in the working directory would be imported as an empty package.
        if not hasattr(wandb, "init"):
            raise ImportError("wandb is not installed")
        self._wandb = wandb
        self._config = run.config
        self._watched: nn.Module | None = None
        self._last_step = 0
        wandb_id = _wandb_id(run.folder)
        lacking = [] if run.until is None else _lacking(run.folder, wandb_id, run.until, run.lines)
        self.run = wandb.init(
            project=run.config.wandb_project,
            name=run.name,
            tags=run.config.wandb_tags,
            dir=str(run.folder),
            id=wandb_id,
            resume="allow",
            config=run.config.model_dump(),
            settings=wandb.Settings(console="off"),
        )
        self.run.define_metric("*", step_metric="step")
        # If W&B is disabled, its folder is elsewhere.
        folder = Path(self.run.dir).parent
        self._folder = folder if folder.is_relative_to(run.folder) else None
        for line in lacking:
            self.log(line["step"], figures(line))

    def watch(self, module: nn.Module) -> None:
        self._watched = module

    def before_step(self, step: int) -> None:
        mode = self._config.wandb_watch_mode
        if self._watched is None or mode is None or step % self._config.wandb_log_freq != 0:
            return
        histograms = {}
        for name, parameter in self._watched.named_parameters():
            for kind, tensor in (("parameters", parameter), ("gradients", parameter.grad)):
                if tensor is not None and mode in (kind, "all"):
                    values = tensor.detach().to_dense().float().flatten().cpu()
                    histogram = np.histogram(values[values.isfinite()].numpy(), bins=64)
                    histograms[f"{kind}/{name}"] = self._wandb.Histogram(np_histogram=histogram)
        self.run.log({"step": step, **histograms})

    def log(self, step: int, values: dict[str, Any]) -> None:
        self.run.log({"step": step, **values})
        self._last_step = step

    def summary(self, values: dict[str, Any]) -> None:
        self.run.summary.update(values)

    def artifact(self, path: Path) -> None:
        if not self._config.model_to_wandb:
            return
        artifact = self._wandb.Artifact(re.sub(r"[^\w.-]", "-", f"{self.run.name or self.run.id}-model"), type="model")
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def finish(self, status: str) -> None:
        self.run.finish(exit_code=1 if status == "failed" else 0)
        if self._folder is not None:
            write_text(self._folder / _ENDED_FILE, str(self._last_step))


def _lacking(run_dir: Path, wandb_id: str, until: int, lines: Sequence[Line]) -> list[Line]:
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


def _wandb_id(run_dir: Path) -> str:
    """The W&B id of the run in `run_dir`, created on the first call."""
    file = run_dir / WANDB_ID_FILE
    if not file.exists():
        write_text(file, secrets.token_hex(4))
    return file.read_text(encoding="ascii").strip()
