"""The one way to write: files and folders that appear whole or not at all, and the checksums that vouch for them.

Everything is written under a temporary name beside its target, flushed to the disk and renamed. The temporary file is
always a new one, so no symbolic link is followed, and it has the mode that the umask gives. A missing folder is never
made again: it may have been removed on purpose.
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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from ... import RunError, UserError
from ...kernels.words import count

_TEMPORARY = re.compile(r"\.tmp-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}-.+", re.DOTALL)
# No write takes this long, so a temporary name of another machine that is older has no writer any more.
_ABANDONED_AFTER = timedelta(days=1)
# The longest name that most file systems take, in bytes.
_LONGEST_NAME = 255
# The disk's refusals: the run failed, where any other refusal means that the path can't be used.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@dataclass(frozen=True)
class Checksum:
    """A file's `size` in bytes and its SHA-256 as hexadecimal text."""

    size: int
    sha256: str


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON. Raises as `written`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8. Raises as `written`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data`. Raises as `written`."""
    with written(path) as file:
        file.write(data)


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A binary stream whose content appears at `path` when the block ends, whole or not at all.

    Raises:
        RunError: the disk is full or broken.
        UserError: `path` can't be used: its folder is missing, read-only, no folder.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
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
    """A new, empty folder that becomes `folder` when the block ends, with all its files on the disk.

    `folder` must not be there; a failure inside the block leaves nothing behind. Raises as `written`, and
    FileExistsError where another process published it first.
    """
    temporary = folder.with_name(temporary_name(folder.name))
    try:
        temporary.mkdir()
        yield temporary
        mode = stat.S_IMODE(temporary.stat().st_mode)
        for path in sorted(temporary.rglob("*"), reverse=True):
            # Libraries choose modes of their own (safetensors 0600); mkdir's is the one that the umask gives.
            path.chmod(mode if path.is_dir() else mode & 0o666)
            sync_folder(path)
        sync_folder(temporary)
        # A rename would replace an empty folder without a word.
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


def append_text(path: Path, text: str) -> None:
    """Adds `text` to the end of the file at `path`, as `open_to_append` opens it. Raises as `written`."""
    try:
        with open_to_append(path) as file:
            file.write(text)
    except OSError as error:
        raise write_error(path, error) from error


def open_to_append(path: Path) -> TextIO:
    """A UTF-8 stream that adds to the end of the file at `path`, made where it isn't there.

    What is there must be a file of this one name: through a symbolic or a hard link a file elsewhere would grow.
    Raises as `written`.
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
    """A new, empty file at `path`, for what another process writes bit by bit; what was there is removed.

    Raises as `written`.
    """
    try:
        path.unlink(missing_ok=True)
        return path.open("xb")
    except OSError as error:
        raise write_error(path, error) from error


def make_folder(path: Path) -> None:
    """Makes one folder where there is none; its parent must be there. Raises UserError for a link or a file."""
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    refuse_link(path)


def make_folders(path: Path, what: str) -> None:
    """Makes a folder and those above it, where they are not there. `what` names it in the error, e.g. ``--out``.

    Raises as `written`.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error, what) from error


def refuse_link(path: Path) -> None:
    """Raises UserError where `path` is a symbolic link: what is written there would land where the link says."""
    if path.is_symlink():
        raise UserError(
            f"{path} is a symbolic link, and nothing is written through one; put what it leads to in its place, or "
            "mount it there"
        )


def refuse_links(folder: Path, but_in: str | None = None) -> None:
    """Raises UserError for the first symbolic link, pipe, socket or device in `folder`, at any depth.

    What lies in the folders called `but_in` is not looked at.
    """
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            refuse_link(path)
            if not (path.is_dir() or path.is_file()):
                raise UserError(f"{path} is no file and no folder; remove it")
        folders[:] = [name for name in folders if name != but_in]


def write_error(path: Path, error: OSError, what: str = "") -> RunError | UserError:
    """The one line for a write that the system refused: a failed run if the disk is at fault, else unusable input."""
    reason = error.strerror or str(error) or type(error).__name__
    named = f"{what} {path}" if what else path
    if is_disk_error(error) or error.errno is None:
        return RunError(f"can't write {named} ({reason}); free space or choose another disk")
    return UserError(f"can't write {named} ({reason}); choose another folder, or mend this one")


def is_disk_error(error: OSError) -> bool:
    """Whether the disk is at fault: full, beyond a quota or a limit, or broken."""
    return error.errno in _DISK_ERRORS


def _librarys_refusal(error: Exception) -> OSError | None:
    """The disk's refusal of a write that a library made: safetensors and torch raise errors of their own for it."""
    text = str(error)
    if found := re.search(r"\(os error (\d+)\)", text):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    return OSError(text) if "PytorchStreamWriter failed writing" in text else None


def json_digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def checksum(path: Path) -> Checksum:
    """Size and SHA-256 of the file at `path`. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Checksum(file.tell(), digest)


def checksums(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What a manifest says of the files `names` (relative, POSIX) in `folder`: each one's size and SHA-256."""
    return {name: asdict(checksum(folder / name)) for name in names}


def check_file(path: Path, described: Any, advice: str) -> None:
    """Compares the file at `path` with what a manifest says of it.

    Args:
        path: The file.
        described: Its entry in the manifest: a mapping with `size` and `sha256`.
        advice: How to mend a damaged one; ends the message.

    Raises:
        UserError: the file is missing, can't be read, or has other bytes; the message names it.
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
    """The hidden name under which this process builds what will be called `name`."""
    prefix = f".tmp-{platform.node() or 'host'}-{os.getpid()}-{secrets.token_hex(4)}-"
    return prefix + os.fsdecode(os.fsencode(name)[: _LONGEST_NAME - len(os.fsencode(prefix))])


def sweep(folder: Path) -> None:
    """Removes what killed processes left half-written in `folder`, never what a live one works on."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if is_abandoned(path):
            remove(path)


def is_abandoned(path: Path) -> bool:
    """Whether `path` has a temporary name whose writer is gone."""
    match = _TEMPORARY.fullmatch(path.name)
    if match is None:
        return False
    if match["host"] == (platform.node() or "host"):
        # One of our own number is an earlier process's, or this one's own, which sweeps only between writes.
        return int(match["pid"]) == os.getpid() or not _is_alive(int(match["pid"]))
    try:
        age = datetime.now(UTC) - datetime.fromtimestamp(path.lstat().st_mtime, UTC)
    except FileNotFoundError:
        return False
    return age > _ABANDONED_AFTER


def remove(path: Path) -> None:
    """Removes a file, a link or a folder, if it is there and as far as that is possible."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except OSError:
        shutil.rmtree(path, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Waits until the disk has a folder's names (a rename then survives a power cut), or a file's content."""
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
