"""Arrays on disk under a key: ``.npy`` files and a manifest with their hashes, published whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger("isotrain")

MANIFEST = "manifest.json"
FORMAT = "isotrain token cache 1"

# name -> (dtype, length); a length of None is free.
Shapes = dict[str, tuple[str, int | None]]

_TEMPORARY = ".tmp-"
# A temporary folder that is this much older than one just made was left behind by a process that was killed.
_ABANDONED_SECONDS = 24 * 3600
_ATTEMPTS = 3


def load_arrays(folder: Path, shapes: Shapes) -> dict[str, np.ndarray] | None:
    """The arrays in `folder`, or None when it isn't there or anything about it is wrong (then with a log line).

    Every byte is checked against the manifest, whose key must be the folder's name. The arrays are flat, of the names,
    dtypes and lengths in `shapes`; ids and token types come as read-only maps of their files, the others in memory.
    """
    if not folder.is_dir():
        return None
    try:
        return _verified(folder, shapes)
    except (OSError, ValueError) as error:
        log.warning("the token cache %s is damaged (%s); it is made anew", folder.name[:12], error)
        return None


def publish_arrays(folder: Path, arrays: dict[str, np.ndarray], shapes: Shapes) -> bool:
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
        published = _move_into_place(temporary, folder, shapes)
        _sync(folder.parent)
    except OSError as error:
        log.warning("the tokens are not cached: %s can't be written (%s)", folder.parent, error.strerror or error)
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
        described[name] = {"dtype": str(array.dtype), "length": len(array), "sha256": _file_hash(folder, name)}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, "key": key, "arrays": described}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    _sync(folder)


def _move_into_place(temporary: Path, folder: Path, shapes: Shapes) -> bool:
    for _ in range(_ATTEMPTS):
        try:
            temporary.rename(folder)
        except OSError:
            # Not "already there" but a disk's refusal: the caller reports it.
            if not folder.exists():
                raise
        else:
            return True
        if load_arrays(folder, shapes) is not None:
            return True
        _discard(folder)
    return False


def _discard(folder: Path) -> None:
    """Takes a damaged entry out of the way in one step, so that no other process sees half of it, then removes it."""
    aside = _temporary_folder(folder)
    try:
        folder.rename(aside / "damaged")
    except FileNotFoundError:
        log.debug("another process removed the damaged token cache %s first", folder.name[:12])
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _verified(folder: Path, shapes: Shapes) -> dict[str, np.ndarray]:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} is of another format")
    if manifest.get("key") != folder.name:
        raise ValueError(f"{MANIFEST} belongs to other data")
    described = manifest.get("arrays")
    if not isinstance(described, dict) or set(described) != set(shapes):
        raise ValueError(f"{MANIFEST} names other arrays")
    arrays = {name: _verified_array(folder, name, described[name], *shapes[name]) for name in shapes}
    offsets = arrays["offsets"]
    if offsets[0] != 0 or (np.diff(offsets) < 1).any() or offsets[-1] != len(arrays["ids"]):
        raise ValueError("offsets.npy doesn't fit ids.npy")
    if "token_type_ids" in arrays and len(arrays["token_type_ids"]) != len(arrays["ids"]):
        raise ValueError("token_type_ids.npy doesn't fit ids.npy")
    return arrays


def _verified_array(folder: Path, name: str, described: Any, dtype: str, length: int | None) -> np.ndarray:
    if not isinstance(described, dict) or described.get("sha256") != _file_hash(folder, name):
        raise ValueError(f"{name}.npy has other bytes than {MANIFEST} says")
    # One value a text is little, and torch takes no read-only arrays: only the one value a token stays on disk.
    array = np.load(folder / f"{name}.npy", mmap_mode="r" if length is None else None, allow_pickle=False)
    if array.ndim != 1 or str(array.dtype) != dtype or (length is not None and len(array) != length):
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
