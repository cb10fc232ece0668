"""Arrays on disk under a key: ``.npy`` files and a manifest with their hashes, published whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger("isotrain")

MANIFEST = "manifest.json"
FORMAT = "isotrain array cache 1"


@dataclass(frozen=True)
class ArraySpec:
    """What an array must be: its dtype, its shape (None is a free length), and whether to map its file into memory.

    Mapped arrays are copy-on-write: nothing written to them reaches the file.
    """

    dtype: str
    shape: tuple[int | None, ...]
    mapped: bool = False


Specs = dict[str, ArraySpec]

_TEMPORARY = ".tmp-"
# A temporary folder that is this much older than one just made was left behind by a process that was killed.
_ABANDONED_SECONDS = 24 * 3600
_ATTEMPTS = 3


def load_arrays(folder: Path, specs: Specs) -> dict[str, np.ndarray] | None:
    """The arrays in `folder`, or None when it isn't there or anything about it is wrong (then with a log line).

    Every byte is checked against the manifest, whose key must be the folder's name, and every array against `specs`.
    """
    if not folder.is_dir():
        return None
    try:
        return _verified(folder, specs)
    except (OSError, ValueError) as error:
        log.warning("the cache of %s %s is damaged (%s); it is made anew", folder.parent.name, folder.name[:12], error)
        return None


def publish_arrays(folder: Path, arrays: dict[str, np.ndarray], specs: Specs) -> bool:
    """Writes `arrays` as `folder`: under a temporary name, synced, then renamed. Returns whether it is there now.

    Where another process was faster, its intact copy stays; a damaged one is replaced. A disk that is full or can't be
    written gives a warning and False, and leaves nothing behind.
    """
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_folder(folder)
        _remove_abandoned(temporary)
        _write(temporary, folder.name, arrays)
        published = _move_into_place(temporary, folder, specs)
        _sync(folder.parent)
    except OSError as error:
        log.warning(
            "the %s are not cached: %s can't be written (%s)",
            folder.parent.name,
            folder.parent,
            # numpy raises its own error, without the system's reason, where fewer bytes were written than it gave.
            error.strerror or f"is the disk full? {error}",
        )
        return False
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return published


def _temporary_folder(folder: Path) -> Path:
    """A new folder beside `folder`, with ordinary permissions (tempfile's are for one user; caches get shared)."""
    temporary = folder.parent / f"{folder.name[:16]}{_TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
    temporary.mkdir()
    return temporary


def _write(folder: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    described: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        described[name] = {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": _file_hash(folder, name)}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, "key": key, "arrays": described}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    _sync(folder)


def _move_into_place(temporary: Path, folder: Path, specs: Specs) -> bool:
    for _ in range(_ATTEMPTS):
        try:
            temporary.rename(folder)
        except OSError:
            # Not "already there" but a disk's refusal: the caller reports it.
            if not folder.exists():
                raise
        else:
            return True
        if load_arrays(folder, specs) is not None:
            return True
        _discard(folder)
    return False


def _discard(folder: Path) -> None:
    """Takes a damaged entry out of the way in one step, so that no other process sees half of it, then removes it."""
    aside = _temporary_folder(folder)
    try:
        folder.rename(aside / "damaged")
    except FileNotFoundError:
        log.debug("another process removed the damaged cache %s first", folder.name[:12])
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _verified(folder: Path, specs: Specs) -> dict[str, np.ndarray]:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} is of another format")
    if manifest.get("key") != folder.name:
        raise ValueError(f"{MANIFEST} belongs to other data")
    described = manifest.get("arrays")
    if not isinstance(described, dict) or set(described) != set(specs):
        raise ValueError(f"{MANIFEST} names other arrays")
    return {name: _verified_array(folder, name, described[name], spec) for name, spec in specs.items()}


def _verified_array(folder: Path, name: str, described: Any, spec: ArraySpec) -> np.ndarray:
    if not isinstance(described, dict) or described.get("sha256") != _file_hash(folder, name):
        raise ValueError(f"{name}.npy has other bytes than {MANIFEST} says")
    array = np.load(folder / f"{name}.npy", mmap_mode="c" if spec.mapped else None, allow_pickle=False)
    fits = len(array.shape) == len(spec.shape) and all(
        wanted in (None, found) for wanted, found in zip(spec.shape, array.shape, strict=True)
    )
    if str(array.dtype) != spec.dtype or not fits:
        raise ValueError(f"{name}.npy is {array.dtype} {array.shape}")
    return array


def _file_hash(folder: Path, name: str) -> str:
    with (folder / f"{name}.npy").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_abandoned(fresh: Path) -> None:
    newest = fresh.stat().st_mtime
    for other in fresh.parent.glob(f"*{_TEMPORARY}*"):
        try:
            abandoned = newest - other.stat().st_mtime > _ABANDONED_SECONDS
        except FileNotFoundError:
            continue
        if abandoned:
            shutil.rmtree(other, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
