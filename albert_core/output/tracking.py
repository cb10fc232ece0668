"""Where a run's figures go: always ``metrics.jsonl``, and Weights & Biases or TensorBoard when they are asked for."""

from __future__ import annotations

import json
import logging
import math
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    """What the loop calls; each does nothing unless a tracker says otherwise.

    `values` maps names such as ``train/loss`` to numbers or strings. A tracker that is `required` ends the run when
    it fails; the others are left out from then on.
    """

    required = False

    def watch(self, module: nn.Module) -> None:
        """Called once with the module that is trained, before the first step."""

    def before_step(self, step: int) -> None:
        """Called when the gradients of optimizer step `step` are complete and not yet applied."""

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Figures that belong to optimizer step `step`."""

    def summary(self, values: dict[str, Any]) -> None:
        """The run's final figures."""

    def artifact(self, path: Path) -> None:
        """The final model: a file or a folder."""

    def finish(self, status: str) -> None:
        """The end of the run: "completed", "stopped" (it can be resumed) or "failed"."""


class JsonlTracker(Tracker):
    """One JSON object a line, ``{"step": 10, "epoch": 0.5, "train/loss": 1.25}``, readable while the run goes on.

    JSON has no NaN and no infinities: they are the strings "NaN", "Infinity" and "-Infinity", which Python's
    ``float()`` and JavaScript's ``Number()`` turn back. Being the run's own record, a failure to write is a UserError.
    `emulated` stands in every line as ``device`` unless it is empty: the label of a device that is only emulated.
    """

    required = True

    def __init__(self, path: Path, emulated: str = "") -> None:
        self.path = path
        self._every_line = {"device": emulated} if emulated else {}

    def truncate_after(self, step: int, *, evaluated: bool = True) -> tuple[int, list[Line]]:
        """Drops the lines of later steps, which a resume from `step` writes anew, and a line torn by a kill.

        So is `step`'s own evaluation where it is still to be made (`evaluated` is false).

        The file is replaced in one move. A line elsewhere that isn't JSON is dropped with a warning. Returns the last
        step of which nothing was dropped, and the lines that are left.
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
    """A Weights & Biases run (extra `wandb`). Online, offline or disabled is wandb's own setting, ``WANDB_MODE``.

    Its id is kept in the run directory, so that a resumed run goes on in the same W&B run. Steps are logged as the
    value ``step`` and are the x axis of every chart: W&B's own counter refuses to go back, as a resume must.
    `until`, `lines`: the step after which a resumed run logs anew, and its lines; W&B is given those it lacks.
    `watch_mode` records histograms every `log_freq` steps under the names of ``wandb.watch``, but without its hooks:
    an exception in one (W&B's service was killed) would pass through the training's forward or backward.
    Raises ImportError where wandb is not installed and wandb's own errors where the run can't be opened.
    """

    def __init__(
        self,
        run_dir: Path,
        project: str,
        run_name: str,
        tags: Iterable[str] = (),
        watch_mode: Literal["gradients", "parameters", "all"] | None = None,
        log_freq: int = 1000,
        model_to_wandb: bool = False,
        config: dict[str, Any] | None = None,
        until: int | None = None,
        lines: Sequence[Line] = (),
    ) -> None:
        import wandb

        # A folder called wandb in the working directory imports as an empty package.
        if not hasattr(wandb, "init"):
            raise ImportError("wandb is not installed")
        self._wandb = wandb
        self._watch_mode = watch_mode
        self._log_freq = log_freq
        self._model_to_wandb = model_to_wandb
        self._watched: nn.Module | None = None
        self._last_step = 0
        wandb_id = _wandb_id(run_dir)
        lacking = [] if until is None else lacking_in_wandb(run_dir, wandb_id, until, lines)
        self.run = wandb.init(
            project=project,
            name=run_name,
            tags=list(tags),
            dir=str(run_dir),
            id=wandb_id,
            resume="allow",
            config=config,
            settings=wandb.Settings(console="off"),
        )
        self.run.define_metric("*", step_metric="step")
        # Disabled, W&B has a folder elsewhere.
        folder = Path(self.run.dir).parent
        self._folder = folder if folder.is_relative_to(run_dir) else None
        for line in lacking:
            self.log(line["step"], figures(line))

    def watch(self, module: nn.Module) -> None:
        self._watched = module

    def before_step(self, step: int) -> None:
        if self._watched is None or self._watch_mode is None or step % self._log_freq != 0:
            return
        histograms = {}
        for name, parameter in self._watched.named_parameters():
            for kind, tensor in (("parameters", parameter), ("gradients", parameter.grad)):
                if tensor is not None and self._watch_mode in (kind, "all"):
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
        if not self._model_to_wandb:
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

    `until`, `lines`: the step after which a resumed run logs anew, and its lines. Later events of an earlier part are
    marked as superseded, and what is missing of `lines` is written again.
    Raises ImportError where tensorboard is not installed.
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
    """All of a run's trackers as one. One that fails and isn't required is warned about once and left out."""

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
            # Trackers talk to services through libraries whose exceptions have no base in common, and none of those
            # is worth a training run.
            except Exception as error:
                if tracker.required:
                    raise
                self._trackers.remove(tracker)
                logger.warning(
                    "%s failed at %s (%s); the run goes on without it",
                    type(tracker).__name__,
                    what,
                    error_line(error),
                )


def make_trackers(
    config: TrainConfig,
    run_dir: Path,
    resume_step: int | None = None,
    emulated: str = "",
    *,
    evaluated: bool = True,
) -> Trackers:
    """The trackers `config` asks for, writing under `run_dir`, which must exist.

    `resume_step` is the step a resumed run goes on from: what was logged after it is dropped, and so is its evaluation
    unless it is `evaluated`; what W&B and TensorBoard lack of the rest they are given. A tracker whose package
    is missing, or whose service refuses, is warned about once with the fix, and the run goes on without it.
    `emulated` is the label of a device that is only emulated, else "": charts show it as part of the run's name.
    """
    metrics = JsonlTracker(run_dir / METRICS_FILE, emulated)
    until, lines = (None, []) if resume_step is None else metrics.truncate_after(resume_step, evaluated=evaluated)
    trackers: list[Tracker] = [metrics]
    if config.use_wandb:
        trackers += _opened("wandb", lambda: _open_wandb(config, run_dir, emulated, until, lines))
    if config.use_tensorboard:
        events = run_dir / "tensorboard" / emulated
        trackers += _opened("tensorboard", lambda: TensorBoardTracker(events, until, lines))
    return Trackers(trackers)


def _open_wandb(
    config: TrainConfig, run_dir: Path, emulated: str, until: int | None, lines: Sequence[Line]
) -> WandbTracker:
    name = config.wandb_run_name or run_dir.name
    return WandbTracker(
        run_dir,
        config.wandb_project,
        f"{name} on {emulated}" if emulated else name,
        config.wandb_tags,
        config.wandb_watch_mode,
        config.wandb_log_freq,
        config.model_to_wandb,
        config.model_dump(),
        until,
        lines,
    )


def _opened(extra: str, build: Callable[[], Tracker]) -> list[Tracker]:
    """The tracker in a list, or an empty list and one warning."""
    try:
        return [build()]
    except ImportError as error:
        fix = install_hint(extra)
        logger.warning("use_%s is set but can't be followed (%s): %s; the run goes on without it", extra, error, fix)
    # The same reason as in Trackers: a service that can't be reached is no reason not to train.
    except Exception as error:  # noqa: BLE001
        logger.warning("%s can't be opened (%s); the run goes on without it", extra, error_line(error))
    return []


def _wandb_id(run_dir: Path) -> str:
    """The W&B id of the run in `run_dir`, made on the first call and the same ever after."""
    file = run_dir / WANDB_ID_FILE
    if not file.exists():
        write_text(file, secrets.token_hex(4))
    return file.read_text(encoding="ascii").strip()


def _plain(value: Any) -> Any:
    """`value` as JSON has it: a 0-dimensional tensor or NumPy scalar as its number, non-finite numbers as strings."""
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, float) and not math.isfinite(number):
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return number
