"""A run's folder: configuration, labels, tokenizer, log, metrics, checkpoints and the final model."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import UserError, __version__
from .config_file import ResolvedConfig
from .progress import terminal

log = logging.getLogger("isotrain")


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.tokenizer = path / "tokenizer"
        self.labels = path / "labels.json"
        self.config = path / "config.yaml"
        self.summary = path / "summary.json"

    @property
    def name(self) -> str:
        return self.path.name


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


def find_run(config_project_dir: str, run_name: str | None) -> RunFolder:
    """The run to go on with: the one named, else the one under project_dir whose checkpoint is newest."""
    parent = Path(config_project_dir).expanduser()
    if run_name is not None:
        folder = RunFolder(parent / run_name)
        if not folder.path.is_dir():
            raise UserError(f"there is no run {str(folder.path)!r} to resume; runs there: {_runs_in(parent)}")
        return folder
    newest = max(parent.glob("*/checkpoints/step-*"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None:
        raise UserError(
            f"no run under {str(parent)!r} has a checkpoint to resume from; start one without resume_from_checkpoint, "
            "or set project_dir and run_name to an earlier run"
        )
    return RunFolder(newest.parent.parent)


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


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON at `path`, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """`text` at `path`, whole or not at all: written beside it, flushed to disk, renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"can't write {path} ({error.strerror}); free space or choose another folder") from error


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
def logging_to(file: Path, level: str) -> Iterator[None]:
    """isotrain's log to the terminal (stderr) from `level` up, and all of it to `file`."""
    from rich.logging import RichHandler

    logger = logging.getLogger("isotrain")
    previous = logger.level, logger.propagate
    screen = RichHandler(console=terminal(), show_path=False, show_time=False, markup=False)
    screen.setLevel(level)
    on_disk = logging.FileHandler(file, encoding="utf-8")
    on_disk.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in (screen, on_disk):
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in (screen, on_disk):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(previous[0])
        logger.propagate = previous[1]


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def _runs_in(parent: Path) -> str:
    names = sorted(path.parent.name for path in parent.glob("*/config.yaml")) if parent.is_dir() else []
    return ", ".join(names[-5:]) or "none"


def safe_name(text: str) -> str:
    """`text` as a part of a file name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-") or "run"
