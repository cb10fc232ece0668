"""The bytes of data files, unpacked if the name ends in .gz."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO

from ... import UserError
from ..terminal.text import reason_of

# A stranger's small file may unpack to more than the memory holds. SQuAD's own have 30 MB.
LARGEST_UNPACKED = 2**29
# Tables of texts shrink to a tenth or so. A file that unpacks to a hundred times its size was made to do so.
MOST_GROWTH = 100


def is_gzip(path: Path) -> bool:
    """Whether `path` is read through gzip."""
    return path.name.lower().endswith(".gz")


def suffix_of(path: Path) -> str:
    """The suffix that says the format, in lower case: ``.csv`` of ``rows.CSV.gz``."""
    return PurePath(path.name.lower().removesuffix(".gz")).suffix


def check_regular(path: Path) -> None:
    """Raises UserError for a pipe, a socket or a device."""
    # A pipe can be read only once, and its reader waits for a writer that may never come.
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} can't be read (it is no regular file); save what it gives as a file first")


def most_unpacked(path: Path) -> int:
    """The most bytes that a packed file of tables may unpack to."""
    return max(LARGEST_UNPACKED, MOST_GROWTH * path.stat().st_size)


def check_growth(path: Path, unpacked: int, most: float) -> None:
    """Raises UserError if `unpacked` bytes are more than `most` (see `most_unpacked`)."""
    if unpacked > most:
        raise UserError(
            f"{path} unpacks to more than {most:,} bytes, over {MOST_GROWTH} times its size; give it as .csv or .jsonl "
            "if that is right"
        )


def read_bytes(path: Path) -> bytes:
    """The whole content of the file at `path`.

    Raises:
        UserError: The file can't be read, is no intact gzip file, or unpacks to more than LARGEST_UNPACKED bytes.
    """
    with _opened(path) as file:
        return _within_limit(path, file.read(LARGEST_UNPACKED + 1) if is_gzip(path) else file.read(), 0)


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of the file at `path`, each with the LF that ends it. Raises UserError as `read_bytes` does."""
    with _opened(path) as file:
        read = 0
        while line := file.readline(LARGEST_UNPACKED - read + 1 if is_gzip(path) else -1):
            yield _within_limit(path, line, read)
            read += len(line)


def _within_limit(path: Path, part: bytes, read: int) -> bytes:
    if is_gzip(path) and read + len(part) > LARGEST_UNPACKED:
        raise UserError(f"{path} unpacks to more than {LARGEST_UNPACKED:,} bytes; unpack it if that is right")
    return part


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | gzip.GzipFile]:
    check_regular(path)
    try:
        with gzip.open(path) if is_gzip(path) else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise UserError(f"{path} can't be read ({reason}); give an intact, readable file") from error
