"""A run's folder: configuration, labels, tokenizer, log, metrics, checkpoints and the final model."""

from __future__ import annotations

import json
import logging
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, TextIO

from .. import UserError, __version__
from .config import TrainConfig
from .config_file import ResolvedConfig, load_config
from .progress import terminal
from .runs.files import open_to_append, refuse_links

log = logging.getLogger("isotrain")

# Keys that say how, where and how far to go on, not what is trained.
RESUME_KEYS = {
    "resume_from_checkpoint",
    "resume_option",
    "checkpoint_path",
    "load_from_storage",
    "stop_at_step",
    "run_name",
    "project_dir",
    "log_level",
    "threads",
}


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.tokenizer = path / "tokenizer"
        self.encoder = path / "encoder"
        self.labels = path / "labels.json"
        self.inputs = path / "inputs.json"
        self.responses = path / "responses.json"
        self.config = path / "config.yaml"
        self.summary = path / "summary.json"
        self.origin = path / "run.json"

    @property
    def name(self) -> str:
        return self.path.name

    def is_complete(self) -> bool:
        """Whether summary.json says that the run reached its last step."""
        with suppress(OSError, ValueError):
            return bool(json.loads(self.summary.read_text(encoding="utf-8"))["status"] == "completed")
        return False

    def identity(self) -> dict[str, Any]:
        """What the run's weights have in common, as it wrote it when it began; empty where it didn't.

        Raises UserError for a file that is damaged.
        """
        try:
            found = json.loads(self.origin.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{self.origin} can't be read ({error}); copy the whole run folder again") from error
        identity = found.get("identity") if isinstance(found, dict) else None
        return identity if isinstance(identity, dict) else {}


def create_run(resolved: ResolvedConfig) -> RunFolder:
    """A new folder ``project_dir/run_name``; an existing one is never written over (UserError)."""
    config = resolved.config
    parent = Path(config.project_dir).expanduser()
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    names = [config.run_name] if config.run_name else _numbered(f"{resolved.stem}-{stamp}")
    for name in names:
        path = parent / name
        try:
            path.mkdir(parents=True)
        except FileExistsError as error:
            if config.run_name:
                raise UserError(
                    f"run {str(path)!r} exists already; choose another run_name, or go on with it by --resume {path}"
                ) from error
            continue
        except OSError as error:
            raise UserError(
                f"project_dir {config.project_dir!r}: can't create {path} ({error.strerror}); choose another"
            ) from error
        return RunFolder(path)
    raise AssertionError("numbered names never end")


def find_run(config: TrainConfig) -> RunFolder:
    """The run to go on with: the one that run_name names, else the newest of this configuration under project_dir."""
    parent = Path(config.project_dir).expanduser()
    if config.run_name is not None:
        folder = RunFolder(parent / config.run_name)
        if not folder.path.is_dir():
            raise UserError(f"there is no run {str(folder.path)!r} to resume; runs there: {_runs_in(parent)}")
        return folder
    found = sorted(parent.glob("*/checkpoints/step-*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in dict.fromkeys(path.parent.parent for path in found):
        run = RunFolder(path)
        with suppress(UserError):
            if not changed_keys(load_config(run.config).config.model_dump(), _absolute(config)):
                return run
    raise UserError(
        f"no run under {str(parent)!r} has this configuration and a checkpoint to resume from; runs there: "
        f"{_runs_in(parent)}; name one by run_name, or start without resume_from_checkpoint"
    )


def _absolute(config: TrainConfig) -> TrainConfig:
    return ResolvedConfig(config, {}, "").with_absolute_paths().config


def open_run(path: str | Path) -> RunFolder:
    """An existing run by its folder. Raises UserError for anything else."""
    folder = RunFolder(Path(path).expanduser())
    if not folder.path.is_dir():
        raise UserError(f"run {str(path)!r} is no folder; give the folder that `isotrain train` printed")
    if not folder.config.is_file():
        raise UserError(
            f"{str(path)!r} is not a run folder: it has no config.yaml; give one that `isotrain train` wrote"
        )
    return folder


def with_device(by_id: dict[str, Any], emulated: str) -> dict[str, Any]:
    """What a file holds by id, begun with ``device`` where `emulated` names a device that is only emulated.

    Whoever looks up ids, as SQuAD's evaluation does, passes over it. Where an id is called so, the key is ``_device``.
    """
    key = "device"
    while key in by_id:
        key = f"_{key}"
    return {key: emulated} | by_id if emulated else by_id


def read_strings(path: Path) -> list[str]:
    """A JSON list of strings, as `write_json` left it. Raises UserError for a file that is anything else."""
    try:
        strings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}); copy the whole run folder again") from error
    if not isinstance(strings, list) or not strings or not all(isinstance(item, str) for item in strings):
        raise UserError(f"{path} holds no list of names; copy the whole run folder again")
    return strings


def environment() -> dict[str, Any]:
    """What a run's summary says about the machine and the programs it ran with."""
    import numpy
    import torch
    import transformers

    return {
        "isotrain": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "command": shlex.join(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@contextmanager
def log_to_terminal(level: str | None) -> Iterator[MemoryHandler]:
    """isotrain's log on stderr from `level` up (None: nothing). Yields what keeps it till the run's folder is known."""
    from rich.logging import RichHandler

    logger = logging.getLogger("isotrain")
    previous = logger.level, logger.propagate
    console = terminal()
    screen: logging.Handler
    if console.is_terminal:
        screen = RichHandler(console=console, show_path=False, show_time=False, show_level=False, markup=False)
    else:
        # rich would wrap at 80 columns, and a log file is searched by line.
        screen = _LastingHandler()
    screen.setFormatter(_Loud("%(message)s"))
    screen.setLevel(logging.CRITICAL + 1 if level is None else level)
    early = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in (screen, early):
        logger.addHandler(handler)
    try:
        yield early
    finally:
        for handler in (screen, early):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(previous[0])
        logger.propagate = previous[1]


class _Loud(logging.Formatter):
    """Names the level of what is more than news."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return line if record.levelno <= logging.INFO else f"{record.levelname} {line}"


class _LastingHandler(logging.StreamHandler[TextIO]):
    """Lines on stderr for as long as somebody reads them; a closed pipe is no reason to end a run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)


@contextmanager
def log_to_file(file: Path, early: MemoryHandler) -> Iterator[None]:
    """All of isotrain's log in `file` too, beginning with the lines that `early` kept."""
    logger = logging.getLogger("isotrain")
    stream = open_to_append(file)
    on_disk = logging.StreamHandler(stream)
    on_disk.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    early.setTarget(on_disk)
    early.flush()
    logger.removeHandler(early)
    logger.addHandler(on_disk)
    try:
        yield
    finally:
        logger.removeHandler(on_disk)
        on_disk.close()
        stream.close()


@contextmanager
def run_lock(run: RunFolder) -> Iterator[None]:
    """One process trains a run at a time. Raises UserError where another one does; a killed one's lock is gone.

    A run may come from a stranger: one with a link in it is refused, through which something elsewhere would be
    written. wandb's folder has links of wandb's own.
    """
    import fcntl

    refuse_links(run.path, but_in="wandb")
    with open_to_append(run.path / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"run {str(run.path)!r} is being trained by another process; wait for it, or end it"
            ) from error
        yield


def changed_keys(before: dict[str, Any], config: TrainConfig) -> list[str]:
    """``key: old -> new`` for every key that a resumed run has another value of, those that say how to resume aside."""
    now = config.model_dump()
    return [
        f"{key}: {before[key]} -> {value}"
        for key, value in now.items()
        if key in before and before[key] != value and key not in RESUME_KEYS
    ]


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def _runs_in(parent: Path) -> str:
    names = sorted(path.parent.name for path in parent.glob("*/config.yaml")) if parent.is_dir() else []
    return ", ".join(names[-5:]) or "none"
