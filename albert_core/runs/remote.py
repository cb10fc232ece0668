"""Checkpoints on remote storage: any URL that fsspec knows, or a plain path.

A checkpoint counts only with its manifest, which is uploaded last, so an interrupted upload never counts. If the
storage is a local folder, the checkpoint also appears by one rename. Downloads are verified under a temporary name.
fsspec is imported on first use.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ... import UserError
from ...kernels.install import pip_install
from ..terminal.text import reason_of
from .checkpoint import FILES, MANIFEST, STEP_NAME, CheckpointError, parse_manifest, read_manifest, verify_checkpoint
from .checkpoint_store import sweep_leftovers
from .files import make_folder, published, temporary_name, write_bytes, written

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger(__name__)

_CHUNK = 2**20
# A manifest has a few kilobytes. One that is cut here is not valid JSON.
_LARGEST_MANIFEST = 2**26


def remote_url(remote_path: str, storage_backend: Literal["local", "fsspec"]) -> str:
    """The URL of `remote_path`: unchanged for "fsspec", ``file://`` and the absolute path for "local".

    Raises:
        UserError: It is empty, or a URL although the backend is "local".
    """
    if not remote_path:
        raise UserError("remote_path is empty; name the folder or URL that checkpoints are copied to and fetched from")
    if storage_backend == "fsspec":
        return remote_path
    if "://" in remote_path:
        raise UserError(f"remote_path {remote_path!r} is a URL; set storage_backend: fsspec")
    return f"file://{Path(remote_path).expanduser().resolve()}"


def check_remote(url: str) -> None:
    """Creates the folder at `url` when a run starts, so that a wrong URL fails early. Raises UserError."""
    filesystem, root = _open(url)
    with _remote_errors(f"can't use {url}"):
        filesystem.makedirs(root, exist_ok=True)


def upload_checkpoint(checkpoint: Path, url: str) -> None:
    """Copies the files in the checkpoint's manifest into the folder `url`, and replaces a checkpoint of that name.

    Raises:
        CheckpointError: The manifest is damaged.
        UserError: The storage failed. The message has its reason.
    """
    filesystem, root = _open(url)
    files = [checkpoint / FILES[role] for role in read_manifest(checkpoint)["files"]]
    # The optimizer's file may have been pruned. The manifest is last.
    files = [*filter(Path.is_file, files), checkpoint / MANIFEST]
    parent, _, name = root.rpartition("/")
    renames = _is_local(filesystem)
    if renames:
        sweep_leftovers(Path(parent))
    target = f"{parent}/{temporary_name(name)}" if renames else root
    with _remote_errors(f"can't upload {checkpoint} to {url}"):
        _remove(filesystem, target)
        filesystem.makedirs(target, exist_ok=True)
        for path in files:
            filesystem.put_file(str(path), f"{target}/{path.name}")
        if renames:
            _remove(filesystem, root)
            filesystem.mv(target, root)


def download_checkpoint(url: str, local: Path) -> Path:
    """Copies the checkpoint at `url` to the folder `local`, which appears only once it is complete. Returns `local`.

    Only the manifest and the files of a checkpoint are fetched, at most as large as the manifest says. An existing
    checkpoint with the same content is kept.

    Raises:
        CheckpointError: `local` holds another checkpoint, or the download is damaged.
        UserError: It can't be fetched. The message has the storage's reason.
    """
    filesystem, root = _open(url)
    if local.exists():
        try:
            verify_checkpoint(local)
        except CheckpointError as error:
            raise CheckpointError(f"{error}, or move it away to fetch it from {url}") from error
        if _content(read_manifest(local)) == _content(_remote_manifest(filesystem, root)):
            return local
        raise CheckpointError(f"{local} is another checkpoint than {url}; move one of them away")
    make_folder(local.parent)
    try:
        data = _manifest_bytes(filesystem, root)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint at {url}; check remote_path") from error
    manifest = parse_manifest(data, f"{url}/{MANIFEST}")
    try:
        with published(local) as temporary:
            for role, entry in manifest["files"].items():
                _fetch(filesystem, f"{root}/{FILES[role]}", temporary / FILES[role], entry, f"{url}/{FILES[role]}")
            write_bytes(temporary / MANIFEST, data)
            try:
                verify_checkpoint(temporary)
            except CheckpointError as error:
                raise CheckpointError(str(error).replace(str(temporary), url)) from error
    except FileExistsError as error:
        raise CheckpointError(f"{local} was made by another process; start again") from error
    return local


def _fetch(filesystem: AbstractFileSystem, remote: str, local: Path, entry: dict[str, Any], name: str) -> None:
    """Fetches one file, reading no more bytes than its manifest `entry` says. A pruned file is skipped."""
    left = entry["size"]
    try:
        with _remote_errors(f"can't download {name}", passing=FileNotFoundError):
            source = filesystem.open(remote, "rb")
    except FileNotFoundError as error:
        if entry["prunable"]:
            return
        raise CheckpointError(f"checkpoint file {name} is missing; continue from another checkpoint") from error
    with source, written(local) as file:
        while left >= 0:
            with _remote_errors(f"can't download {name}"):
                chunk = source.read(min(_CHUNK, left + 1))
            if not chunk:
                return
            left -= len(chunk)
            file.write(chunk)
    raise CheckpointError(f"checkpoint file {name} is damaged: it has more than {entry['size']} bytes")


def sync_checkpoint(checkpoint: Path, url: str) -> bool:
    """Copies `checkpoint` into the folder `url` under its own name. `CheckpointStore` calls it after a save.

    A failing storage only warns and returns False, because the checkpoint is safe on the local disk and training should
    continue.

    Raises:
        UserError: The URL can't be opened at all.
        CheckpointError: A checkpoint of that name belongs to another run. It is not overwritten.
    """
    filesystem, root = _open(url)
    target = f"{root.rstrip('/')}/{checkpoint.name}"
    local = read_manifest(checkpoint)
    try:
        remote = _remote_manifest(filesystem, target)
        if remote is not None and remote.get("identity") != local["identity"]:
            raise CheckpointError(f"{url} has {checkpoint.name} of another run; set remote_path to a folder of its own")
        if remote is None or _content(remote) != _content(local):
            upload_checkpoint(checkpoint, f"{url.rstrip('/')}/{checkpoint.name}")
    except CheckpointError:
        raise
    except UserError as error:
        logger.warning("%s; the run continues with its local checkpoints", error)
        return False
    return True


def remote_checkpoints(url: str) -> list[str]:
    """Names of the complete checkpoints at `url`, oldest step first. Empty if there is no such folder."""
    filesystem, root = _open(url)
    with _remote_errors(f"can't list {url}"):
        filesystem.invalidate_cache()
        if not filesystem.exists(root):
            return []
        names = [path.rstrip("/").rpartition("/")[2] for path in filesystem.ls(root, detail=False)]
        whole = [
            (int(match["step"]), int(match["attempt"] or 1), match.string)
            for match in map(STEP_NAME.fullmatch, names)
            if match and filesystem.exists(f"{root}/{match.string}/{MANIFEST}")
        ]
    return [name for _, _, name in sorted(whole)]


def latest_remote(url: str) -> str | None:
    """The name of the newest complete checkpoint at `url`, or None."""
    names = remote_checkpoints(url)
    return names[-1] if names else None


def fetch_latest(url: str, folder: Path) -> Path:
    """Downloads the newest checkpoint at `url` into `folder` under its own name. Raises UserError if there is none."""
    name = latest_remote(url)
    if name is None:
        raise CheckpointError(f"no checkpoint at {url}; check remote_path, or set load_from_storage: false")
    return download_checkpoint(f"{url.rstrip('/')}/{name}", folder / name)


def _open(url: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of `url` and the path inside it."""
    from fsspec.core import url_to_fs

    try:
        with _remote_errors(f"can't open {url}"):
            filesystem, path = url_to_fs(url)
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, ImportError):
            missing = getattr(cause.__cause__, "name", None) or url.partition(":")[0]
            package = missing.partition(".")[0].replace("_", "-")
            raise UserError(
                f"remote_path {url!r} needs a package that is not installed: `{pip_install(package)}`"
            ) from error
        raise
    return filesystem, path.rstrip("/")


def _is_local(filesystem: AbstractFileSystem) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(filesystem, LocalFileSystem)


def _remove(filesystem: AbstractFileSystem, path: str) -> None:
    """Removes the manifest first, so that the rest no longer counts as a checkpoint."""
    filesystem.invalidate_cache()
    if filesystem.exists(f"{path}/{MANIFEST}"):
        filesystem.rm_file(f"{path}/{MANIFEST}")
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def _manifest_bytes(filesystem: AbstractFileSystem, path: str) -> bytes:
    """The manifest in the remote folder `path`. Raises FileNotFoundError if there is none."""
    with _remote_errors(f"can't read {path}/{MANIFEST}", passing=FileNotFoundError):
        filesystem.invalidate_cache()
        return bytes(filesystem.cat_file(f"{path}/{MANIFEST}", start=0, end=_LARGEST_MANIFEST))


def _remote_manifest(filesystem: AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """The manifest in the remote folder `path`, or None if there is none of ours."""
    try:
        return parse_manifest(_manifest_bytes(filesystem, path), f"{path}/{MANIFEST}")
    except (FileNotFoundError, CheckpointError):
        return None


def _content(manifest: dict[str, Any] | None) -> dict[str, Any] | None:
    """What identifies a checkpoint: everything except when and by which versions it was written."""
    return manifest and {key: manifest[key] for key in ("identity", "state", "optimizer", "metrics", "files")}


@contextmanager
def _remote_errors(what: str, passing: type[Exception] = UserError) -> Iterator[None]:
    """Turns a storage failure into a UserError with its reason. Errors of type `passing` are not changed."""
    try:
        yield
    except (UserError, passing):
        raise
    # Each storage library has its own exceptions, without a common base class (botocore, aiohttp, google.auth...).
    except Exception as error:
        raise UserError(
            f"{what} ({reason_of(error, 300)}); check remote_path, storage_backend and your access to it"
        ) from error
