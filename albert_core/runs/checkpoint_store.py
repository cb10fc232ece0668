"""The checkpoints of a run: which to keep, which to resume from, and how to lose none of them to a kill."""

from __future__ import annotations

import logging
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..config.best import Best
from .checkpoint import (
    FILES,
    STEP_NAME,
    CheckpointError,
    Snapshot,
    manifest_metrics,
    read_manifest,
    verify_checkpoint,
    write_checkpoint,
)
from .files import remove, sweep, sync_folder

logger = logging.getLogger(__name__)

# A kill may leave it behind. The prefix keeps trash from counting as a checkpoint.
_TRASH = re.compile(r"\.trash-[0-9a-f]{32}-step-.*")
_ASIDE = "set-aside-"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint's manifest says. `metrics` is empty if its weights weren't evaluated.

    `problem` says why the manifest can't be used. Then only `path` and `step` are set.
    """

    path: Path
    step: int
    epoch: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    created: str = ""
    optimizer_prunable: bool = False
    problem: str | None = None


# Defined outside the class, where `list` still means the type.
Infos = list[CheckpointInfo]
Paths = list[Path]


class CheckpointStore:
    """The checkpoints in `folder`. Keeps the last `keep_last_n` by step and the first `keep_best_n` as ranked by
    `best`.

    The newest always stays until `finish`, because a resume needs it. A checkpoint with a damaged manifest is neither
    counted nor deleted. If `save_optim` is false, only the newest keeps its optimizer state, and none does after
    `finish`. `after_save` is called with the path of each new checkpoint once it is verified.
    """

    def __init__(
        self,
        folder: Path,
        keep_last_n: int,
        keep_best_n: int,
        best: Best,
        save_optim: bool = True,
        after_save: Callable[[Path], object] | None = None,
    ) -> None:
        self.folder = folder
        self.keep_last_n = keep_last_n
        self.keep_best_n = keep_best_n
        self.best = best
        self.save_optim = save_optim
        self.after_save = after_save

    @classmethod
    def for_reading(cls, folder: Path, best: Best) -> CheckpointStore:
        """A store for `find` and `list` only."""
        return cls(folder, 0, 0, best)

    def save(self, snapshot: Snapshot) -> Path:
        """Writes `snapshot`, reads it back, and only then deletes what the policy no longer keeps.

        Raises:
            CheckpointError: It can't be written or is damaged. All older checkpoints are unchanged.
        """
        sweep_leftovers(self.folder)
        path = write_checkpoint(snapshot, self.folder, optimizer_prunable=not self.save_optim)
        verify_checkpoint(path)
        self._prune([path])
        if self.after_save is not None:
            self.after_save(path)
        return path

    def finish(self) -> None:
        """Applies the policy to the newest checkpoint too, at the end of a run that won't be resumed."""
        sweep_leftovers(self.folder)
        self._prune([])

    def make_room(self, resumed: Path) -> None:
        """Applies the policy before anything is written, as the disk may be full. `resumed` and the newest stay."""
        sweep_leftovers(self.folder)
        newest = [info.path for info in self.list() if info.problem is None][-1:]
        self._prune([resumed, *newest])

    def of_step(self, step: int, *, finished: bool) -> Path | None:
        """The checkpoint of `step`, or None if there is none or `finish` will delete it once the run is `finished`."""
        infos = self._kept([]) if finished else self.list()
        return next((info.path for info in infos[::-1] if info.step == step and info.problem is None), None)

    def list(self) -> Infos:
        """Every checkpoint in the folder by step, including those with a damaged manifest."""
        if not self.folder.is_dir():
            return []
        paths = [path for path in self.folder.iterdir() if STEP_NAME.fullmatch(path.name) and path.is_dir()]
        return [self._info(path) for path in sorted(paths, key=_step_and_attempt)]

    def find(self, option: Literal["last", "best", "path"], path: str | Path | None = None) -> Path:
        """Finds and verifies the checkpoint to resume from.

        Args:
            option: Which one to find.
            path: For "path", a folder or a name in this store.

        Raises:
            CheckpointError: There is none, or it is damaged. The message names the damage and the intact checkpoint to
                use instead, which is never used automatically.
        """
        match option:
            case "path":
                return self._find_path(path)
            case "last":
                candidates = self.list()[::-1]
            case "best":
                infos = self.list()
                candidates = self._ranked(infos)
                damaged = [info.problem for info in infos if info.problem is not None]
                if damaged:
                    raise CheckpointError(f"{damaged[0]}; it may be the best one; {_suggestion(infos[::-1])}")
            case _:
                raise CheckpointError(f"resume_option is {option!r}; allowed are last, best and path")
        if not candidates:
            wanted = f"checkpoint with {self.best.metric}" if option == "best" and self.list() else "checkpoint"
            raise CheckpointError(f"no {wanted} to continue from in {self.folder}; {self._what_is_there()}")
        try:
            verify_checkpoint(candidates[0].path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {_suggestion(candidates[1:])}") from error
        return candidates[0].path

    def set_aside_after(self, step: int) -> Paths:
        """Renames the checkpoints after `step` when a run resumes there, and returns their new paths.

        Otherwise they would count as newer than the ones about to be written. They are never deleted.
        """
        moved = []
        for info in self.list():
            if info.step > step:
                target = self.folder / f"{_ASIDE}{info.path.name}"
                while target.exists():
                    target = target.with_name(f"{target.name}+")
                moved.append(info.path.rename(target))
        if moved:
            sync_folder(self.folder)
        return moved

    def _info(self, path: Path) -> CheckpointInfo:
        step = _step_and_attempt(path)[0]
        try:
            manifest = read_manifest(path)
            metrics = manifest_metrics(manifest)
        except (CheckpointError, TypeError, ValueError) as error:
            return CheckpointInfo(path, step, problem=str(error))
        return CheckpointInfo(
            path,
            step,
            manifest["epoch"],
            metrics,
            manifest["created"],
            manifest["files"].get("optimizer", {}).get("prunable", False),
        )

    def _ranked(self, infos: Infos) -> Infos:
        """The evaluated checkpoints, best first."""
        return self.best.rank(infos, lambda info: info.metrics)

    def _kept(self, needed: Paths) -> Infos:
        """The intact checkpoints that the policy keeps, and those in `needed`."""
        intact = [info for info in self.list() if info.problem is None]
        latest = list({info.step: info for info in intact}.values())
        wanted = latest[max(0, len(latest) - self.keep_last_n) :] + self._ranked(latest)[: self.keep_best_n]
        paths = {*needed, *(info.path for info in wanted)}
        return [info for info in intact if info.path in paths]

    def _prune(self, needed: Paths) -> None:
        """Only warns if a deletion fails, because the checkpoints that matter are safe on disk."""
        kept = self._kept(needed)
        paths = {info.path for info in kept}
        try:
            self._delete([info.path for info in self.list() if info.problem is None and info.path not in paths])
            if not self.save_optim:
                for info in kept:
                    if info.path not in needed and info.optimizer_prunable:
                        (info.path / FILES["optimizer"]).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("old checkpoints in %s can't be deleted (%s); the run continues", self.folder, error)

    def _delete(self, paths: Paths) -> None:
        """Renames before it deletes, and durably, so that a kill leaves nothing that looks like a checkpoint."""
        if not paths:
            return
        trash = [path.rename(self.folder / f".trash-{uuid.uuid4().hex}-{path.name}") for path in paths]
        sync_folder(self.folder)
        for path in trash:
            shutil.rmtree(path)

    def _find_path(self, path: str | Path | None) -> Path:
        if not path:
            raise CheckpointError("resume_option: path needs checkpoint_path; name the checkpoint's folder there")
        for folder in (Path(path).expanduser(), self.folder / path):
            if folder.is_dir():
                verify_checkpoint(folder)
                return folder
        raise CheckpointError(f"checkpoint_path {str(path)!r} does not exist; {self._what_is_there()}")

    def _what_is_there(self) -> str:
        names = ", ".join(info.path.name for info in self.list())
        if names:
            return f"{self.folder} has {names}"
        return "there is none yet: start the run with resume_from_checkpoint: false"


def sweep_leftovers(folder: Path) -> None:
    """Removes what killed processes left half written or half deleted in `folder`, but nothing of a live process."""
    sweep(folder)
    for path in folder.glob(".trash-*"):
        if _TRASH.fullmatch(path.name):
            remove(path)


def _step_and_attempt(path: Path) -> tuple[int, int]:
    match = STEP_NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not named like a checkpoint")
    return int(match["step"]), int(match["attempt"] or 1)


def _suggestion(infos: Infos) -> str:
    for info in infos:
        try:
            verify_checkpoint(info.path)
        except CheckpointError:
            continue
        return f"the next intact one: resume_option: path, checkpoint_path: {info.path}"
    return "no other intact one is there: start a new run"
