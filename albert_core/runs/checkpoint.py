"""One checkpoint on disk: a folder of safetensors files and a JSON manifest with their checksums.

``step-00000123/`` holds ``model.safetensors``, ``optimizer.safetensors``, ``state.safetensors`` and ``manifest.json``.
It appears by one rename, so a folder with a checkpoint's name is complete. All files are checked against the manifest's
sizes and SHA-256 sums before they are used. Nothing here deletes or repairs a damaged checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import reprlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ... import RunError, UserError, __version__
from ...backends import renamed
from ...kernels.words import count
from ..config.best import metric_names
from ..config.parsing import decoded, parse_json
from ..terminal.text import quoted, shorten
from .files import json_digest, make_folder, published, write_bytes

FORMAT = "isotrain-checkpoint"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
FILES = {"model": "model.safetensors", "optimizer": "optimizer.safetensors", "state": "state.safetensors"}

# The keys of every manifest and their types.
_KEYS = {"step": int, "epoch": int, "created": str, "metrics": dict, "identity": dict, "state": dict, "files": dict}

# The number after the dot distinguishes checkpoints of the same step that were written one after the other.
STEP_NAME = re.compile(r"step-(?P<step>[0-9]{8,15})(?:\.(?P<attempt>[0-9]{1,9}))?")


class CheckpointError(UserError):
    """A checkpoint can't be written, is damaged, or belongs to another run."""


@dataclass(eq=False)
class Snapshot:
    """Everything that a run needs to continue from `step` as if it had never stopped.

    Tensors are loaded to the CPU. All other values are restored exactly.

    Attributes:
        step: Optimizer steps done.
        model: Tensors of any shape, dtype and device, by name.
        optimizer: A torch optimizer's ``state_dict()``, or None if it was pruned.
        state_tensors: Generators and loss accumulators, like `model`.
        state: Plain values: numbers, strings, None, and lists, tuples and dicts of them.
        identity: What a run must share with this one to resume from it, as plain values.
        folder: Where it was read from.
    """

    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any] | None
    state_tensors: dict[str, torch.Tensor]
    state: dict[str, Any]
    identity: dict[str, Any]
    metrics: dict[str, float]
    step: int
    epoch: int
    folder: Path | None = field(default=None, kw_only=True)


def write_checkpoint(snapshot: Snapshot, folder: Path, *, optimizer_prunable: bool = False) -> Path:
    """Writes `snapshot` as ``folder/step-NNNNNNNN``. After a kill, all of it exists or nothing.

    If that step exists already, the new one becomes ``step-NNNNNNNN.2``, because a folder can't be replaced in one
    move.

    Args:
        optimizer_prunable: Whether the optimizer's file may be missing later.

    Returns:
        The path of the checkpoint.

    Raises:
        RunError: The disk is full or broken. Nothing is left of the checkpoint.
        UserError: The path can't be written.
    """
    make_folder(folder)
    target = _free_name(folder, snapshot.step)
    optimizer_tensors: dict[str, torch.Tensor] = {}
    manifest = _describe(snapshot, optimizer_tensors)
    by_role = {"model": snapshot.model, "optimizer": optimizer_tensors, "state": snapshot.state_tensors}
    if snapshot.optimizer is None:
        del by_role["optimizer"]
    try:
        with published(target) as temporary:
            for role, tensors in by_role.items():
                data = serialized(tensors)
                write_bytes(temporary / FILES[role], data)
                manifest["files"][role] = {
                    "name": FILES[role],
                    "size": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "prunable": role == "optimizer" and optimizer_prunable,
                }
            manifest["manifest_sha256"] = _manifest_digest(manifest)
            write_bytes(temporary / MANIFEST, json.dumps(manifest, indent=1, allow_nan=False).encode())
    except RunError as error:
        needed = sum(tensor.nbytes for tensors in by_role.values() for tensor in tensors.values())
        reason = getattr(error.__cause__, "strerror", None) or str(error)
        raise RunError(
            f"checkpoint {target} can't be written ({reason}) and it needs {needed:,} bytes; free some, or lower "
            "keep_last_n and keep_best_n, or set project_dir to another disk"
        ) from error
    return target


def read_checkpoint(folder: Path) -> Snapshot:
    """Reads the checkpoint in `folder` after checking every file. `optimizer` is None if its file was pruned.

    Raises:
        CheckpointError: A file is missing, truncated, changed or of another format. The message names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    manifest = read_manifest(folder)
    tensors: dict[str, dict[str, torch.Tensor] | None] = {}
    for role, entry in manifest["files"].items():
        data = _checked_bytes(folder / FILES[role], entry)
        try:
            tensors[role] = None if data is None else load(data)
        except (SafetensorError, ValueError) as error:
            raise _damaged(folder / FILES[role], f"it is no safetensors file ({error})") from error
    optimizer_tensors = tensors.get("optimizer")
    try:
        return Snapshot(
            model=tensors["model"] or {},
            optimizer=None if optimizer_tensors is None else _decode(manifest["optimizer"], optimizer_tensors),
            state_tensors=tensors["state"] or {},
            state=_decode(manifest["state"], {}),
            identity=renamed(_decode(manifest["identity"], {})),
            metrics=manifest_metrics(manifest),
            step=manifest["step"],
            epoch=manifest["epoch"],
            folder=folder,
        )
    # The SHA-256 is right, so it was not written by isotrain.
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / MANIFEST, "it holds values that isotrain does not write") from error


def verify_checkpoint(folder: Path) -> None:
    """Checks every file of the checkpoint in `folder`. Raises CheckpointError as `read_checkpoint` does."""
    for role, entry in read_manifest(folder)["files"].items():
        _checked_bytes(folder / FILES[role], entry)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads and checks (see `parse_manifest`) the manifest of the checkpoint in `folder`, but no other file."""
    file = folder / MANIFEST
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {folder}: there is no such folder; give a checkpoint's folder")
    try:
        return parse_manifest(file.read_bytes(), file)
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint file {file} is missing; continue from another checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"checkpoint file {file} can't be read ({error.strerror}); make it readable") from error


def parse_manifest(data: bytes, file: object) -> dict[str, Any]:
    """Parses a manifest and checks its format, version, own SHA-256 and keys.

    Its `metrics`, `state` and `identity` are still encoded (see `manifest_metrics`).

    Raises:
        CheckpointError: A check failed. The message calls the manifest `file`.
    """
    fix = "continue from another checkpoint"
    try:
        manifest = parse_json(decoded(data, file, fix), file, fix, nan=True, halves=True)
    except UserError as error:
        raise CheckpointError(f"checkpoint file {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint file {file} is not of an isotrain checkpoint; give one that isotrain wrote")
    if manifest.get("version") != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint file {file} has format version {quoted(manifest.get('version'))}, this isotrain reads version "
            f"{FORMAT_VERSION}; use the isotrain that wrote it ({shorten(str(manifest.get('isotrain', 'unknown')))})"
        )
    if manifest.get("manifest_sha256") != _manifest_digest(manifest):
        raise _damaged(file, "its SHA-256 is another one than when it was written")
    wrong = [key for key, kind in _KEYS.items() if not isinstance(manifest.get(key), kind)]
    if not wrong and not _describes_files(manifest["files"]):
        wrong = ["files"]
    if wrong:
        raise _damaged(file, f"its {', '.join(wrong)} are not what isotrain writes")
    return manifest


def _describes_files(files: dict[str, Any]) -> bool:
    return {"model", "state"} <= files.keys() <= FILES.keys() and all(
        isinstance(entry, dict)
        and type(entry.get("size")) is int
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("prunable"), bool)
        for entry in files.values()
    )


def manifest_metrics(manifest: dict[str, Any]) -> dict[str, float]:
    """The metrics in a manifest from `read_manifest`. Raises ValueError if they are not numbers."""
    figures = {name: float(value) for name, value in _decode(manifest["metrics"], {}).items()}
    return metric_names(figures, manifest["identity"].get("workload"))


def check_identity(snapshot: Snapshot, expected: dict[str, Any]) -> None:
    """Checks that `snapshot` belongs to the run described by `expected`.

    Raises:
        CheckpointError: It doesn't. The message names the first three keys that differ.
    """
    absent = object()
    differences = [
        f"{key} is {_short(snapshot.identity.get(key, absent), absent)} there and {_short(value, absent)} here"
        for key in sorted(snapshot.identity.keys() | expected.keys())
        if snapshot.identity.get(key, absent) != (value := expected.get(key, absent))
    ]
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise CheckpointError(
            f"foreign checkpoint {snapshot.folder or ''}: {'; '.join(differences[:3])}{more}; "
            "resume with the values it was trained with, or start a new run"
        )


def _free_name(folder: Path, step: int) -> Path:
    name, attempt = f"step-{step:08d}", 1
    target = folder / name
    while target.exists():
        attempt += 1
        target = folder / f"{name}.{attempt}"
    return target


def _describe(snapshot: Snapshot, optimizer_tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The manifest without its files. The optimizer's tensors are added to `optimizer_tensors`."""
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "isotrain": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": snapshot.step,
        "epoch": snapshot.epoch,
        "metrics": _encode(snapshot.metrics, "metrics", None),
        "identity": _encode(snapshot.identity, "identity", None),
        "state": _encode(snapshot.state, "state", None),
        "optimizer": _encode(snapshot.optimizer, "optimizer", optimizer_tensors),
        "files": {},
    }


def serialized(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """`tensors` as a safetensors file. Each gets its own storage, so shared and strided ones are saved in full."""
    from safetensors.torch import save

    seen: set[int] = set()
    dense = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != plain.nbytes:
            plain = plain.clone(memory_format=torch.contiguous_format)
        seen.add(plain.untyped_storage().data_ptr())
        dense[name] = plain
    return save(dense, metadata=metadata)


def _checked_bytes(file: Path, entry: dict[str, Any]) -> bytes | None:
    """The file's content after a check of its size and SHA-256, or None if it was pruned."""
    try:
        size = file.stat().st_size
        if size != entry["size"]:
            raise _damaged(file, f"it has {count(size, 'byte')} instead of {entry['size']}")
        data = file.read_bytes()
    except FileNotFoundError as error:
        if entry["prunable"]:
            return None
        raise CheckpointError(f"checkpoint file {file} is missing; continue from another checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"checkpoint file {file} can't be read ({error.strerror}); make it readable") from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise _damaged(file, "its SHA-256 is another one than when it was written")
    return data


def _manifest_digest(manifest: dict[str, Any]) -> str:
    return json_digest({key: value for key, value in manifest.items() if key != "manifest_sha256"})


def _damaged(file: object, reason: str) -> CheckpointError:
    return CheckpointError(f"checkpoint file {file} is damaged: {reason}; continue from another checkpoint")


def _short(value: Any, absent: object) -> str:
    return "absent" if value is absent else reprlib.repr(value)


def _encode(value: Any, name: str, tensors: dict[str, torch.Tensor] | None) -> Any:
    """Encodes `value` as JSON that `_decode` restores exactly. What JSON lacks becomes a dict with one "$" key.

    Tensors are added to `tensors`, named by their position in the tree. If it is None, a tensor is an error.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _encode(item, f"{name}/{key}", tensors) for key, item in value.items()}
        pairs = [[_encode(key, name, None), _encode(item, f"{name}/{key}", tensors)] for key, item in value.items()]
        return {"$dict": pairs}
    if isinstance(value, torch.Tensor) and tensors is not None:
        while name in tensors:
            name += "'"
        tensors[name] = value
        return {"$tensor": name}
    raise TypeError(f"{name}: a {type(value).__name__} can't be kept in a checkpoint there")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$float": text}:
            return float(text)
        case {"$tuple": items}:
            return tuple(_decode(item, tensors) for item in items)
        case {"$dict": pairs}:
            return {_decode(key, tensors): _decode(item, tensors) for key, item in pairs}
        case {"$tensor": name}:
            return tensors[name]
    return {key: _decode(item, tensors) for key, item in value.items()}
