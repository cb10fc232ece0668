"""Data sets on the local disk: which file of a folder holds which split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ... import UserError
from .columns import evaluation_names
from .tabular import TABLE_SUFFIXES, Table, read_table, shown


@dataclass(frozen=True)
class FileKind:
    """Files that hold rows of some kind: how their names end, how they are read, what to give where there is none.

    versions: whether a split's file may have more in its name, as ``train-v1.1.json``.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Path], Table]
    instead: str
    versions: bool = False

    def looks_local(self, dataset_id: str) -> bool:
        """Whether a name that isn't there is meant as a path: by how it begins, or by how it ends."""
        return dataset_id.startswith((".", "/", "~")) or dataset_id.lower().endswith(self.suffixes)

    def check_there(self, dataset_id: str, path: Path) -> None:
        """Raises UserError where nothing is at `path`, which a local `dataset_id` names."""
        if not path.exists():
            raise UserError(
                f"dataset_id {dataset_id!r} is read as a local path, and nothing is there; give an existing file or "
                f"folder, {self.instead}"
            )

    def holds(self, name: str, split: str) -> bool:
        """Whether a file of this name holds `split`."""
        if self.versions:
            return name.startswith((f"{split}.", f"{split}-", f"{split}_")) and name.endswith(self.suffixes)
        return name in [split + suffix for suffix in self.suffixes]


LABELLED_TEXTS = FileKind(TABLE_SUFFIXES, read_table, "a Hub id such as mteb/banking77, or embedded:intents")


def read_local(dataset_id: str, path: Path, evaluation_split: str | None, kind: FileKind) -> tuple[Table, Table | None]:
    """The training split, and the one for evaluation where there is one; one file is all training.

    Raises UserError where nothing is there, for a folder without a training file or with a split twice, and for an
    `evaluation_split` that it doesn't have.
    """
    kind.check_there(dataset_id, path)
    if path.is_file():
        if evaluation_split is not None:
            raise UserError(
                f"evaluation_split is set, but {dataset_id} is one file; give a folder with its splits, or set "
                "test_fraction instead"
            )
        return kind.read(path), None
    if not path.is_dir():
        raise UserError(
            f"dataset_id {dataset_id!r} is a pipe, a socket or a device, which can't be read twice; save the rows to a "
            "file, and give that"
        )
    train = _split_file(path, ("train",), kind)
    if train is None:
        found = sorted(entry.name for entry in path.iterdir())
        names = [f"train{suffix}" for suffix in kind.suffixes]
        raise UserError(
            f"the folder {path} has no training file, it has {shown(found) or 'nothing'}; "
            f"give a folder with {', '.join(names[:-1])} or {names[-1]}"
        )
    test = _split_file(path, evaluation_names(evaluation_split), kind)
    if test is None and evaluation_split is not None:
        raise UserError(
            f"the folder {path} has no {evaluation_split} file, but evaluation_split asks for it; add it, or drop that"
        )
    return kind.read(train), kind.read(test) if test else None


def _split_file(folder: Path, splits: Sequence[str], kind: FileKind) -> Path | None:
    """The file of the first of `splits` that the folder has. Raises UserError when it has that split twice."""
    for split in splits:
        files = [entry for entry in sorted(folder.iterdir()) if kind.holds(entry.name.lower(), split)]
        if len(files) > 1:
            raise UserError(
                f"the folder {folder} has the {split} split {len(files)} times ({shown(file.name for file in files)}); "
                "keep one of them"
            )
        if files:
            return files[0]
    return None
