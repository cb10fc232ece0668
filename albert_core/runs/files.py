"""All writing: files and folders that appear completely or not at all, and their checksums.

Everything is written under a temporary name beside its target, flushed to disk and renamed. The temporary file is
always a new one with the mode of the umask, so no symbolic link is followed. A missing folder is not created again,
because it may have been removed on purpose.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from ... import RunError, UserError
from ...kernels.words import count

_TEMPORARY = re.compile(r"\.tmp-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}-.+", re.DOTALL)
# No write takes this long, so an older temporary name from another machine has no writer any more.
_ABANDONED_AFTER = timedelta(days=1)
# The longest name that most file systems take, in bytes.
_LONGEST_NAME = 255
# Errors of the disk fail the run. Any other error means that the path can't be used.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_DEVICES = Path("/dev")
# The names of this process's scratch folders.
_in_use: set[str] = set()


@dataclass(frozen=True)
class Checksum:
    """The `size` of a file in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON. Raises the errors of `written`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8. Raises the errors of `written`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data`. Raises the errors of `written`."""
    with written(path) as file:
        file.write(data)


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A binary stream. Its content appears at `path` when the block ends, completely or not at all.

    Raises:
        RunError: The disk is full or broken.
        UserError: `path` can't be used: its folder is missing, read-only or not a folder, or it is a device or a pipe.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        # The rename would put a file in the place of /dev/null or of the link /dev/stdout, for everybody.
        special = path.exists() and not (path.is_file() or path.is_dir())
        if special or path.absolute().parent == _DEVICES:
            raise UserError(f"can't write {path}: it is a device or a pipe; choose another name")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        remove(temporary)


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A new, empty folder that becomes `folder` when the block ends, with all its files on disk.

    `folder` must not exist. A failure inside the block leaves nothing behind. Raises the errors of `written`, and
    FileExistsError if another process published it first.
    """
    temporary = folder.with_name(temporary_name(folder.name))
    try:
        temporary.mkdir()
        yield temporary
        mode = stat.S_IMODE(temporary.stat().st_mode)
        for path in sorted(temporary.rglob("*"), reverse=True):
            # Libraries choose their own modes (safetensors 0600). mkdir uses the umask's.
            path.chmod(mode if path.is_dir() else mode & 0o666)
            sync_folder(path)
        sync_folder(temporary)
        # A rename would silently replace an empty folder.
        if folder.is_symlink() or folder.exists():
            raise FileExistsError(errno.EEXIST, "exists already", str(folder))
        temporary.rename(folder)
        sync_folder(folder.parent)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(errno.EEXIST, "exists already", str(folder)) from error
        raise write_error(folder, error) from error
    except Exception as error:
        refused = _librarys_refusal(error)
        if refused is None:
            raise
        raise write_error(folder, refused) from error
    finally:
        remove(temporary)


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """A new folder among the system's temporary ones, for this user alone, which is removed when the block ends.

    Those that killed processes left there are removed, too. `name` is the end of its name.
    """
    place = Path(tempfile.gettempdir())
    # Some systems let nobody list it.
    with suppress(PermissionError):
        sweep(place)
    folder = place / temporary_name(name)
    _in_use.add(folder.name)
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        remove(folder)
        _in_use.discard(folder.name)


def append_text(path: Path, text: str) -> None:
    """Appends `text` to the file at `path`, opened by `open_to_append`. Raises the errors of `written`."""
    try:
        with open_to_append(path) as file:
            file.write(text)
    except OSError as error:
        raise write_error(path, error) from error


def open_to_append(path: Path) -> TextIO:
    """A UTF-8 stream that appends to the file at `path`, which is created if it doesn't exist.

    An existing file must have no other name: through a symbolic or hard link, a file elsewhere would grow. Raises the
    errors of `written`.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        file = os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8")
    except OSError as error:
        raise write_error(path, error) from error
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        file.close()
        raise UserError(f"{path} is no file, or has a second name (a hard link); put a copy of it in its place")
    return file


def open_anew(path: Path) -> BinaryIO:
    """Opens a new, empty file at `path`, which another process fills bit by bit. An existing file is removed.

    Raises the errors of `written`.
    """
    try:
        path.unlink(missing_ok=True)
        return path.open("xb")
    except OSError as error:
        raise write_error(path, error) from error


def make_folder(path: Path) -> None:
    """Creates one folder if it doesn't exist. Its parent must exist. Raises UserError for a link or a file."""
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    refuse_link(path)


def make_folders(path: Path, what: str) -> None:
    """Creates a folder and its parents if they don't exist. `what` names it in the error, e.g. ``--out``.

    Raises the errors of `written`.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error, what) from error


def check_place(path: Path, what: str) -> None:
    """Raises UserError where nothing can be written at `path`, so that work need not be done to find out.

    `what` names it in the error, e.g. ``--out``.
    """
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise UserError(f"{what} {str(path)!r}: {existing} is a file, not a folder; choose another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{what} {str(path)!r}: {existing} can't be written; choose another folder, or mend this one")


def refuse_link(path: Path) -> None:
    """Raises UserError if `path` is a symbolic link, because the write would go to the link's target."""
    if path.is_symlink():
        raise UserError(
            f"{path} is a symbolic link, and nothing is written through one; put what it leads to in its place, or "
            "mount it there"
        )


def refuse_links(folder: Path, but_in: str | None = None) -> None:
    """Raises UserError for the first symbolic link, pipe, socket or device in `folder`, at any depth.

    Folders named `but_in` are not searched.
    """
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            refuse_link(path)
            if not (path.is_dir() or path.is_file()):
                raise UserError(f"{path} is no file and no folder; remove it")
        folders[:] = [name for name in folders if name != but_in]


def write_error(path: Path, error: OSError, what: str = "") -> RunError | UserError:
    """The error for a failed write: RunError if the disk is at fault, else UserError."""
    reason = error.strerror or str(error) or type(error).__name__
    named = f"{what} {path}" if what else path
    if is_disk_error(error) or error.errno is None:
        return RunError(f"can't write {named} ({reason}); free space or choose another disk")
    return UserError(f"can't write {named} ({reason}); choose another folder, or mend this one")


def is_disk_error(error: OSError) -> bool:
    """Whether the disk is at fault: full, over a quota or a limit, or broken."""
    return error.errno in _DISK_ERRORS


def _librarys_refusal(error: Exception) -> OSError | None:
    """The OSError behind a library's failed write. safetensors and torch raise their own errors for it."""
    text = str(error)
    if found := re.search(r"\(os error (\d+)\)", text):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    return OSError(text) if "PytorchStreamWriter failed writing" in text else None


def json_digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def checksum(path: Path) -> Checksum:
    """Size and SHA-256 of the file at `path`. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Checksum(file.tell(), digest)


def checksums(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The manifest entries (size and SHA-256) of the files `names` (relative, POSIX) in `folder`."""
    return {name: asdict(checksum(folder / name)) for name in names}


def check_file(path: Path, described: Any, advice: str) -> None:
    """Compares a file with its manifest entry.

    Args:
        path: The file.
        described: Its entry in the manifest: a mapping with `size` and `sha256`.
        advice: How to fix a damaged file, at the end of the message.

    Raises:
        UserError: The file is missing, can't be read or has other bytes. The message names it.
    """
    entry = described if isinstance(described, Mapping) else {}
    if type(entry.get("size")) is not int or not isinstance(entry.get("sha256"), str):
        raise UserError(f"the manifest says nothing usable of {path}; {advice}")
    try:
        found = checksum(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {advice}") from error
    except PermissionError as error:
        raise UserError(f"{path} can't be read (Permission denied); make it readable for this user") from error
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); {advice}") from error
    if found.size != described["size"]:
        size = count(found.size, "byte")
        raise UserError(f"{path} is damaged: it has {size} instead of {described['size']}; {advice}")
    if found.sha256 != described["sha256"]:
        raise UserError(f"{path} is damaged: its SHA-256 is another one than when it was written; {advice}")


def temporary_name(name: str) -> str:
    """The hidden name under which this process builds `name`."""
    prefix = f".tmp-{platform.node() or 'host'}-{os.getpid()}-{secrets.token_hex(4)}-"
    return prefix + os.fsdecode(os.fsencode(name)[: _LONGEST_NAME - len(os.fsencode(prefix))])


def sweep(folder: Path) -> None:
    """Removes what killed processes left half written in `folder`, but nothing of a live process."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if is_abandoned(path):
            remove(path)


def is_abandoned(path: Path) -> bool:
    """Whether `path` has a temporary name and its writer is gone."""
    match = _TEMPORARY.fullmatch(path.name)
    if match is None:
        return False
    if match["host"] == (platform.node() or "host"):
        # Any other name with our own process id is from an earlier process, or from this one, which sweeps only between
        # writes.
        own = int(match["pid"]) == os.getpid()
        return path.name not in _in_use and (own or not _is_alive(int(match["pid"])))
    try:
        age = datetime.now(UTC) - datetime.fromtimestamp(path.lstat().st_mtime, UTC)
    except FileNotFoundError:
        return False
    return age > _ABANDONED_AFTER


def remove(path: Path) -> None:
    """Removes a file, a link or a folder if it exists, as far as possible."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except OSError:
        shutil.rmtree(path, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Waits until a folder's entries (so that a rename survives a power failure) or a file's content are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
