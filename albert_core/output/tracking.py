"""Where a run's figures go: always ``metrics.jsonl``, and Weights & Biases or TensorBoard if configured."""

from __future__ import annotations

import json
import logging
import math
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...kernels.install import install_hint
from ..config.parsing import parse_json
from ..config.schema import TrainConfig
from ..runs.files import append_text, write_bytes, write_text
from ..terminal.text import error_line
from .tracked import Line, figures, lacking_in_tensorboard, lacking_in_wandb, wandb_ended

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
WANDB_ID_FILE = "wandb-run-id"


class Tracker:
    """What the loop calls. The methods do nothing by default.

    `values` maps names such as ``train/loss`` to numbers or strings. If a `required` tracker fails, the run ends. Other
    trackers are dropped with a warning.
    """

    required = False

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
        plain = {name: _plain(value) for name, value in values.items()}
        line = json.dumps({"step": step, **self._every_line, **plain}, allow_nan=False)
        append_text(self.path, line + "\n")


class WandbTracker(Tracker):
    """A Weights & Biases run (extra `wandb`). wandb's own setting ``WANDB_MODE`` makes it online, offline or disabled.

    Its id is kept in the run directory, so a resumed run continues the same W&B run. Steps are logged as the value
    ``step``, the x axis of every chart, because W&B's own counter can't go back, as a resume must. `until` is the step
    after which a resumed run logs again, and `lines` are its lines so far, from which W&B gets those it lacks.
    `wandb_watch_mode` records histograms every `wandb_log_freq` steps under the names of ``wandb.watch``, but without
    its hooks, where an exception (W&B's service was killed) would propagate through forward or backward. Raises
    ImportError if wandb is not installed, and wandb's own errors if the run can't be opened.
    """

    def __init__(
        self, config: TrainConfig, run_dir: Path, name: str, until: int | None = None, lines: Sequence[Line] = ()
    ) -> None:
        import wandb

        # A folder called wandb in the working directory would be imported as an empty package.
        if not hasattr(wandb, "init"):
            raise ImportError("wandb is not installed")
        self._wandb = wandb
        self._config = config
        self._watched: nn.Module | None = None
        self._last_step = 0
        wandb_id = _wandb_id(run_dir)
        lacking = [] if until is None else lacking_in_wandb(run_dir, wandb_id, until, lines)
        self.run = wandb.init(
            project=config.wandb_project,
            name=name,
            tags=config.wandb_tags,
            dir=str(run_dir),
            id=wandb_id,
            resume="allow",
            config=config.model_dump(),
            settings=wandb.Settings(console="off"),
        )
        self.run.define_metric("*", step_metric="step")
        # If W&B is disabled, its folder is elsewhere.
        folder = Path(self.run.dir).parent
        self._folder = folder if folder.is_relative_to(run_dir) else None
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
                    values = tensor.detach().float().flatten().cpu()
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
            wandb_ended(self._folder, self._last_step)


class TensorBoardTracker(Tracker):
    """TensorBoard event files in `folder` (extra `tensorboard`).

    `until` is the step after which a resumed run logs again, and `lines` are its lines so far. Later events are marked
    as superseded, and missing `lines` are written again. Raises ImportError if tensorboard is not installed.
    """

    def __init__(self, folder: Path, until: int | None = None, lines: Sequence[Line] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if until is None:
            self._writer = SummaryWriter(str(folder))
            return
        lacking = lacking_in_tensorboard(folder, until, lines)
        self._writer = SummaryWriter(str(folder), purge_step=lacking[0]["step"] if lacking else until + 1)
        for line in lacking:
            self.log(line["step"], figures(line))

    def log(self, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def summary(self, values: dict[str, Any]) -> None:
        text = json.dumps({name: _plain(value) for name, value in values.items()}, indent=1, default=str)
        self._writer.add_text("summary", f"```\n{text}\n```")

    def finish(self, status: str) -> None:
        del status
        self._writer.close()


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
        resume_step: The step that a resumed run continues from. What was logged after it is dropped. W&B and
            TensorBoard get what they lack of the rest.
        caveat: The backend's. Charts show it in the run's name.
        evaluated: Whether the evaluation of `resume_step` was made. Otherwise it is dropped too.
    """
    metrics = JsonlTracker(run_dir / METRICS_FILE, caveat)
    until, lines = (None, []) if resume_step is None else metrics.truncate_after(resume_step, evaluated=evaluated)
    trackers: list[Tracker] = [metrics]
    if config.use_wandb:
        name = (config.wandb_run_name or run_dir.name) + (f" on {caveat}" if caveat else "")
        trackers += _opened("wandb", lambda: WandbTracker(config, run_dir, name, until, lines))
    if config.use_tensorboard:
        events = run_dir / "tensorboard" / caveat
        trackers += _opened("tensorboard", lambda: TensorBoardTracker(events, until, lines))
    return Trackers(trackers)


def _opened(extra: str, build: Callable[[], Tracker]) -> list[Tracker]:
    """The tracker in a list, or an empty list and one warning."""
    try:
        return [build()]
    except ImportError as error:
        fix = install_hint(extra)
        logger.warning("use_%s is set but can't be followed (%s): %s; the run continues without it", extra, error, fix)
    # As in Trackers: a service that can't be reached is no reason not to train.
    except Exception as error:  # noqa: BLE001
        logger.warning("%s can't be opened (%s); the run continues without it", extra, error_line(error))
    return []


def _wandb_id(run_dir: Path) -> str:
    """The W&B id of the run in `run_dir`, created on the first call."""
    file = run_dir / WANDB_ID_FILE
    if not file.exists():
        write_text(file, secrets.token_hex(4))
    return file.read_text(encoding="ascii").strip()


def _plain(value: Any) -> Any:
    """`value` as a JSON value: a 0-dimensional tensor or NumPy scalar as a number, non-finite numbers as strings."""
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, float) and not math.isfinite(number):
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return number
