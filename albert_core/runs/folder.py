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

# Keys that say how, where and how long to train, but not what is trained.
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
    """Paths and small files of a run."""

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
        """The content of summary.json, or an empty mapping if it is missing or damaged."""
        with suppress(UserError):
            return read_json_object(self.summary, COPY_AGAIN)
        return {}

    def is_complete(self) -> bool:
        """Whether summary.json says that the run reached its last step."""
        return bool(self.ended().get("status") == "completed")

    def identity(self) -> dict[str, Any]:
        """What all weights of the run have in common, as written when it began. Empty if it wasn't.

        Raises UserError for a damaged file.
        """
        if not self.origin.exists():
            return {}
        identity = read_json_object(self.origin, COPY_AGAIN).get("identity")
        return identity if isinstance(identity, dict) else {}


def new_run(resolved: ResolvedConfig, fill: Callable[[RunFolder], None], held: ExitStack) -> tuple[RunFolder, RunLock]:
    """Creates the folder ``project_dir/run_name``. It appears with everything that `fill` writes, and is locked in
    `held`.

    Raises:
        UserError: The folder exists (it is never overwritten), or project_dir can't be used.
        RunError: The disk is full.
    """
    config = resolved.config
    parent = Path(config.project_dir).expanduser()
    make_folders(parent, "project_dir")
    sweep(parent)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    # The name of a configuration's file may be as long as a folder's.
    stem = os.fsdecode(os.fsencode(resolved.stem)[: LONGEST_NAME - len(stamp) - len("--999")])
    names = [config.run_name] if config.run_name else _numbered(f"{stem}-{stamp}")
    for name in names:
        path = parent / name
        try:
            if not os.path.lexists(path):
                with published(path) as temporary:
                    run = RunFolder(temporary)
                    fill(run)
                    # The lock is moved with the folder, so that no other process takes the run before its first step.
                    lock = held.enter_context(run_lock(run))
                return RunFolder(path), lock
        except FileExistsError:
            log.debug("another process made %s first", path)
        if config.run_name:
            raise UserError(
                f"run {quoted(str(path))} exists already; choose another run_name, or continue it: "
                f"`{command('train', '--resume', str(path))}`"
            )
    raise AssertionError("numbered names never end")


def earlier_run(config: TrainConfig) -> RunFolder | None:
    """The run to resume according to `resume_from_checkpoint`, or None to begin a new one."""
    folder = Path(config.project_dir).expanduser() / (config.run_name or "")
    there = config.run_name is not None and os.path.lexists(folder)
    if config.resume_from_checkpoint == "auto":
        return open_run(folder) if there else None
    if not config.resume_from_checkpoint:
        return None
    # With remote storage, the run may come from another machine. Its checkpoint is then fetched into a new folder.
    return None if config.load_from_storage and not there else find_run(config)


def find_run(config: TrainConfig) -> RunFolder:
    """The run called run_name, else the newest run of this configuration in project_dir. Raises UserError."""
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
    """Opens an existing run by its folder. Raises UserError for anything else."""
    folder = RunFolder(Path(path).expanduser())
    if not folder.path.is_dir():
        raise UserError(f"run {str(path)!r} is no folder; give the folder that `isotrain train` printed")
    if not folder.config.is_file():
        raise UserError(
            f"{str(path)!r} is not a run folder: it has no config.yaml; give one that `isotrain train` wrote"
        )
    return folder


def workload_of(run: RunFolder) -> str | None:
    """The workload that a run trains; None for a run on texts."""
    # A configuration that can't be read is reported by whoever needs it.
    with suppress(UserError):
        return load_config(run.config).config.workload
    return None


def check_predicts(run: RunFolder) -> None:
    """Raises UserError for a run of a workload, which makes no predictions."""
    workload = workload_of(run)
    if workload is not None:
        raise UserError(
            f"run {quoted(str(run.path))} trained {quoted(workload)}, and only runs on texts predict, are exported or "
            f"pushed; load its weights yourself from {run.model / 'model.safetensors'}"
        )


def with_device(by_id: dict[str, Any], caveat: str) -> dict[str, Any]:
    """Adds ``device`` in front of a file's content by id if the backend has a `caveat`.

    A program that looks up ids, such as SQuAD's evaluation, ignores it. If an id has that name, the key is ``_device``.
    """
    key = "device"
    while key in by_id:
        key = f"_{key}"
    return {key: caveat} | by_id if caveat else by_id


def read_strings(path: Path) -> list[str]:
    """Reads a JSON list of strings. Raises UserError for any other content."""
    strings = read_json(path, COPY_AGAIN)
    if not isinstance(strings, list) or not strings or not all(isinstance(item, str) for item in strings):
        raise UserError(f"{path} holds no list of names; {COPY_AGAIN}")
    return strings


def environment() -> dict[str, Any]:
    """The machine and the program versions, as in a run's summary."""
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
    """An open, locked file in a run's folder, which reserves the run for this process."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def check(self, run: RunFolder) -> None:
        """Raises RunError if the locked folder was removed, renamed or replaced."""
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._file.fileno()), (run.path / LOCK_FILE).stat()):
                return
        raise RunError(
            f"the folder of run {quoted(str(run.path))} was removed or renamed while it trained; nothing more is "
            "written; continue what was saved by --resume where the folder is now"
        )


@contextmanager
def run_lock(run: RunFolder) -> Iterator[RunLock]:
    """Reserves a run for this process. The lock of a killed process is released.

    A run from an unknown source that contains a link is rejected, because writing would change a file elsewhere. Only
    wandb's folder may contain links.

    Raises:
        UserError: Another process trains the run, or it contains a link.
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
        # Only for the message above. A full disk is reported by a more important write.
        with suppress(OSError):
            file.truncate(0)
            file.write(f"{os.getpid()} on {platform.node()}")
            file.flush()
        yield RunLock(file)


def _lock_holder(run: RunFolder) -> str:
    """The process that trains the run, according to the lock file."""
    with suppress(OSError, UnicodeDecodeError):
        said = (run.path / LOCK_FILE).read_text(encoding="utf-8")
        if re.fullmatch(r"\d{1,10} on [\w.-]{1,64}", said):
            return f"process {said}"
    return "another process"


def changed_keys(before: dict[str, Any], config: TrainConfig) -> list[str]:
    """``key: old -> new`` for every key that a resumed run changes, except those that say how to resume."""
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
