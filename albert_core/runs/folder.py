"""A run's folder: configuration, labels, tokenizer, log, metrics, checkpoints and the final model."""

from __future__ import annotations

import logging
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from ... import RunError, UserError, __version__
from ..config.load import ResolvedConfig, load_config
from ..config.parsing import read_json, read_json_object
from ..config.schema import LONGEST_NAME, TrainConfig
from ..terminal.invocation import command
from ..terminal.text import quoted, redacted
from .files import make_folders, open_to_append, published, refuse_links, sweep

log = logging.getLogger("isotrain")

LOCK_FILE = ".lock"

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


COPY_AGAIN = "copy the whole run folder again"


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

    def ended(self) -> dict[str, Any]:
        """What summary.json says; empty where there is none, or a damaged one."""
        with suppress(UserError):
            return read_json_object(self.summary, COPY_AGAIN)
        return {}

    def is_complete(self) -> bool:
        """Whether summary.json says that the run reached its last step."""
        return bool(self.ended().get("status") == "completed")

    def identity(self) -> dict[str, Any]:
        """What the run's weights have in common, as it wrote it when it began; empty where it didn't.

        Raises UserError for a file that is damaged.
        """
        if not self.origin.exists():
            return {}
        identity = read_json_object(self.origin, COPY_AGAIN).get("identity")
        return identity if isinstance(identity, dict) else {}


def new_run(resolved: ResolvedConfig, fill: Callable[[RunFolder], None], held: ExitStack) -> tuple[RunFolder, RunLock]:
    """A new folder ``project_dir/run_name``, which appears with all that `fill` writes in it, and locked (in `held`).

    An existing folder is never written over. Raises UserError for that and for a project_dir that can't be used, and
    RunError where the disk is full.
    """
    config = resolved.config
    parent = Path(config.project_dir).expanduser()
    make_folders(parent, "project_dir")
    sweep(parent)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    # A configuration's file may have as long a name as a folder.
    stem = os.fsdecode(os.fsencode(resolved.stem)[: LONGEST_NAME - len(stamp) - len("--999")])
    names = [config.run_name] if config.run_name else _numbered(f"{stem}-{stamp}")
    for name in names:
        path = parent / name
        try:
            if not os.path.lexists(path):
                with published(path) as temporary:
                    run = RunFolder(temporary)
                    fill(run)
                    # The lock comes along, so that nobody takes the run between its appearance and its first step.
                    lock = held.enter_context(run_lock(run))
                return RunFolder(path), lock
        except FileExistsError:
            log.debug("another process made %s first", path)
        if config.run_name:
            raise UserError(
                f"run {quoted(str(path))} exists already; choose another run_name, or go on with it: "
                f"`{command('train', '--resume', str(path))}`"
            )
    raise AssertionError("numbered names never end")


def earlier_run(config: TrainConfig) -> RunFolder | None:
    """The run to go on with, as `resume_from_checkpoint` says; None where a new one is to begin."""
    folder = Path(config.project_dir).expanduser() / (config.run_name or "")
    there = config.run_name is not None and os.path.lexists(folder)
    if config.resume_from_checkpoint == "auto":
        return open_run(folder) if there else None
    if not config.resume_from_checkpoint:
        return None
    # With a storage, the run may come from another machine: its checkpoint then arrives in a folder that is new here.
    return None if config.load_from_storage and not there else find_run(config)


def find_run(config: TrainConfig) -> RunFolder:
    """The run that run_name names, else the newest of this configuration under project_dir. Raises UserError."""
    parent = Path(config.project_dir).expanduser()
    if config.run_name is not None:
        if not (parent / config.run_name).is_dir():
            raise UserError(
                f"there is no run {quoted(str(parent / config.run_name))} to resume; runs there: {_runs_in(parent)}"
            )
        return open_run(parent / config.run_name)
    found = sorted(parent.glob("[!.]*/checkpoints/step-*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    kept = ResolvedConfig(config, {}, "").of_run().config
    for path in dict.fromkeys(path.parent.parent for path in found):
        run = RunFolder(path)
        with suppress(UserError):
            if not changed_keys(load_config(run.config).config.model_dump(), kept):
                return run
    raise UserError(
        f"no run under {quoted(str(parent))} has this configuration and a checkpoint to resume from; runs there: "
        f"{_runs_in(parent)}; name one by run_name, or start without resume_from_checkpoint"
    )


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
    strings = read_json(path, COPY_AGAIN)
    if not isinstance(strings, list) or not strings or not all(isinstance(item, str) for item in strings):
        raise UserError(f"{path} holds no list of names; {COPY_AGAIN}")
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
        "command": redacted(shlex.join(sys.argv)),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


class RunLock:
    """What makes a run this process's: an open, locked file in its folder."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def check(self, run: RunFolder) -> None:
        """Raises RunError where `run` is no longer the folder that was locked: removed, renamed, or another one."""
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._file.fileno()), (run.path / LOCK_FILE).stat()):
                return
        raise RunError(
            f"the folder of run {quoted(str(run.path))} was removed or renamed while it trained; nothing more is "
            "written; what was saved goes on by --resume where the folder is now"
        )


@contextmanager
def run_lock(run: RunFolder) -> Iterator[RunLock]:
    """One process trains a run at a time. Raises UserError where another one does; a killed one's lock is gone.

    A run may come from a stranger: one with a link in it is refused, through which something elsewhere would be
    written. wandb's folder has links of wandb's own.
    """
    import fcntl

    refuse_links(run.path, but_in="wandb")
    with open_to_append(run.path / LOCK_FILE) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"run {quoted(str(run.path))} is being trained by {_lock_holder(run)}; wait for it, or end it"
            ) from error
        # For the line above; a full disk is told of by what matters more.
        with suppress(OSError):
            file.truncate(0)
            file.write(f"{os.getpid()} on {platform.node()}")
            file.flush()
        yield RunLock(file)


def _lock_holder(run: RunFolder) -> str:
    """Who trains the run, as the lock's file says."""
    with suppress(OSError, UnicodeDecodeError):
        said = (run.path / LOCK_FILE).read_text(encoding="utf-8")
        if re.fullmatch(r"\d{1,10} on [\w.-]{1,64}", said):
            return f"process {said}"
    return "another process"


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
    names = sorted(path.parent.name for path in parent.glob("[!.]*/config.yaml")) if parent.is_dir() else []
    return ", ".join(names[-5:]) or "none"
