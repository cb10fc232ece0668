"""Data sets on the local disk: which file in a folder holds which split."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ... import UserError
from .columns import evaluation_names
from .table_files import TABLE_SUFFIXES, read_table
from .tabular import Table, joined_shards, shown


@dataclass(frozen=True)
class FileKind:
    """A kind of data file: its suffixes, how it is read, and what to give if there is none.

    `versions`: whether a split's file name may continue, as in ``train-v1.1.json``.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Path], Table]
    instead: str
    versions: bool = False

    def local_path(self, dataset_id: str) -> Path | None:
        """The path that `dataset_id` names, judged by what exists, its beginning or its end; None for another name."""
        path = Path(dataset_id).expanduser()
        # An empty name would mean the current folder.
        there = dataset_id != "" and path.exists()
        meant = dataset_id.startswith((".", "/", "~")) or dataset_id.lower().endswith(self.suffixes)
        return path if there or meant else None

    def check_there(self, dataset_id: str, path: Path) -> None:
        """Raises UserError if `path`, which a local `dataset_id` names, doesn't exist."""
        if not path.exists():
            raise UserError(
                f"dataset_id {dataset_id!r} is read as a local path, and nothing is there; give an existing file or "
                f"folder, {self.instead}"
            )

    def is_saved(self, path: Path) -> bool:
        """Whether `path` is a folder that `datasets` saved to disk.

        Raises:
            UserError: It also has a training file of this kind.
        """
        marks = [name for name in ("dataset_dict.json", "state.json") if (path / name).is_file()]
        files = _split_files(path, ("train",), self) if marks else []
        if files:
            raise UserError(
                f"the folder {path} has the train split twice: {files[0].name}, and as `datasets` saved it "
                f"({marks[0]}); keep one of them"
            )
        return bool(marks)

    def holds(self, name: str, split: str) -> bool:
        """Whether a file with this name holds `split`."""
        if self.versions:
            return name.startswith((f"{split}.", f"{split}-", f"{split}_")) and name.endswith(self.suffixes)
        return _SHARD.sub("", name, count=1) in [split + suffix for suffix in self.suffixes]


# What the Hub puts after a split's name in the names of its files.
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.)")

LABELLED_TEXTS = FileKind(TABLE_SUFFIXES, read_table, "a Hub id such as mteb/banking77, or embedded:intents")


def read_local(dataset_id: str, path: Path, evaluation_split: str | None, kind: FileKind) -> tuple[Table, Table | None]:
    """Reads the training split and, if there is one, the evaluation split. A single file is all training.

    A split may be in several files, ``train-00000-of-00003.parquet`` and so on, which are read in their order. In a
    copy of one of the Hub's repositories, they are in the folder ``data``.

    Raises:
        UserError: Nothing is there, a folder has no training file, a split twice or not all of its files, or it lacks
            `evaluation_split`.
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
    train, inner = _split_files(path, ("train",), kind), path / "data"
    if not train and inner.is_dir() and (train := _split_files(inner, ("train",), kind)):
        path = inner
    if not train:
        found = sorted(entry.name for entry in path.iterdir())
        raise UserError(
            f"the folder {path} has no training file, it has {shown(found) or 'nothing'}; "
            f"give a folder with train as {', '.join(kind.suffixes)}"
        )
    test = _split_files(path, evaluation_names(evaluation_split), kind)
    if not test and evaluation_split is not None:
        raise UserError(
            f"the folder {path} has no {evaluation_split} file, but evaluation_split asks for it; add it, or drop that"
        )
    return joined_shards(list(map(kind.read, train))), joined_shards(list(map(kind.read, test))) if test else None


def _split_files(folder: Path, splits: Sequence[str], kind: FileKind) -> list[Path]:
    """The files of the first of `splits` in the folder, in their order.

    Raises:
        UserError: The folder has that split twice, or not all of its files.
    """
    for split in splits:
        files = [entry for entry in sorted(folder.iterdir()) if kind.holds(entry.name.lower(), split)]
        sets = {_SHARD.sub(r"-of-\2", file.name, count=1): file.name for file in reversed(files)}
        if len(sets) > 1:
            raise UserError(
                f"the folder {folder} has the {split} split {len(sets)} times ({shown(sorted(sets.values()))}); "
                "keep one of them"
            )
        if files:
            wanted = _all_shards(files[0].name)
            odd = sorted({file.name for file in files} ^ set(wanted))
            if odd:
                raise UserError(
                    f"the folder {folder} {'lacks' if odd[0] in wanted else 'should not have'} {shown(odd)}: the "
                    f"{split} split has {len(wanted)} files by their names; put all of them there"
                )
            return files
    return []


def _all_shards(name: str) -> list[str]:
    """The names of all files of a split, from one of them."""
    shard = _SHARD.search(name)
    if shard is None:
        return [name]
    begin, end = name[: shard.start()], name[shard.end() :]
    return [f"{begin}-{number:05}-of-{shard[2]}{end}" for number in range(int(shard[2]))]
