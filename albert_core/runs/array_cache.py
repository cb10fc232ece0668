"""A cache of arrays on disk, by key: ``.npy`` files and a manifest with their hashes, written completely or not."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import RunError, UserError
from ...backends.host.cache import warn_uncached
from ..config.parsing import read_json_object
from .files import checksum, published, remove, sweep, temporary_name, write_json, written

log = logging.getLogger("isotrain")

MANIFEST = "manifest.json"
FORMAT = "isotrain array cache 1"


@dataclass(frozen=True)
class ArraySpec:
    """What an array must be: its dtype, its shape (None for a free length), and whether its file is memory-mapped.

    Mapped arrays are copy-on-write, so writing to them doesn't change the file.
    """

    dtype: str
    shape: tuple[int | None, ...]
    mapped: bool = False


Specs = dict[str, ArraySpec]

_ATTEMPTS = 3


def load_arrays(folder: Path, specs: Specs) -> dict[str, np.ndarray] | None:
    """Loads the arrays in `folder`, or returns None if it doesn't exist or anything in it is wrong (which is logged).

    Every byte is checked against the manifest and every array against `specs`. The manifest's key must be the folder's
    name. What a killed process left half written beside it is removed: if another one finished the entry, nobody writes
    here again.
    """
    try:
        sweep(folder.parent)
        return _verified(folder, specs) if folder.is_dir() else None
    except (OSError, ValueError) as error:
        log.warning("the cache of %s %s is damaged (%s); it is made anew", folder.parent.name, folder.name[:12], error)
        return None


def publish_arrays(folder: Path, arrays: dict[str, np.ndarray], specs: Specs) -> bool:
    """Writes `arrays` as `folder`, completely or not at all. Returns whether the folder exists now.

    If another process was faster, its intact copy stays; a damaged one is replaced. If the disk is full or can't be
    written, this warns, returns False and leaves nothing behind.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        for _ in range(_ATTEMPTS):
            _discard_damaged(folder, specs)
            try:
                with published(folder) as temporary:
                    _write(temporary, folder.name, arrays)
            except FileExistsError:
                if load_arrays(folder, specs) is None:
                    continue
            return True
    except (OSError, RunError, UserError) as error:
        # If fewer bytes were written than requested, numpy's error has no errno.
        refused = error if isinstance(error, OSError) else error.__cause__ or error
        reason = getattr(refused, "strerror", None) or f"is the disk full? {refused}"
        warn_uncached(f"{folder.parent.parent}: {reason}")
    return False


def _write(folder: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    described: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        with written(path) as file:
            np.save(file, array, allow_pickle=False)
        described[name] = {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": checksum(path).sha256}
    write_json(folder / MANIFEST, {"format": FORMAT, "key": key, "arrays": described})


def _discard_damaged(folder: Path, specs: Specs) -> None:
    """Renames a damaged entry, so that no other process sees half of it, and then removes it."""
    if not os.path.lexists(folder) or load_arrays(folder, specs) is not None:
        return
    aside = folder.with_name(temporary_name(folder.name))
    try:
        folder.rename(aside)
    except FileNotFoundError:
        log.debug("another process removed the damaged cache %s first", folder.name[:12])
    finally:
        remove(aside)


def _verified(folder: Path, specs: Specs) -> dict[str, np.ndarray]:
    manifest = read_json_object(folder / MANIFEST, "remove it")
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} is of another format")
    if manifest.get("key") != folder.name:
        raise ValueError(f"{MANIFEST} belongs to other data")
    described = manifest.get("arrays")
    if not isinstance(described, dict) or set(described) != set(specs):
        raise ValueError(f"{MANIFEST} names other arrays")
    return {name: _verified_array(folder, name, described[name], spec) for name, spec in specs.items()}


def _verified_array(folder: Path, name: str, described: Any, spec: ArraySpec) -> np.ndarray:
    if not isinstance(described, dict) or described.get("sha256") != checksum(folder / f"{name}.npy").sha256:
        raise ValueError(f"{name}.npy has other bytes than {MANIFEST} says")
    array = np.load(folder / f"{name}.npy", mmap_mode="c" if spec.mapped else None, allow_pickle=False)
    fits = len(array.shape) == len(spec.shape) and all(
        wanted in (None, found) for wanted, found in zip(spec.shape, array.shape, strict=True)
    )
    if str(array.dtype) != spec.dtype or not fits:
        raise ValueError(f"{name}.npy is {array.dtype} {array.shape}")
    return array
