"""Texts for `isotrain predict` from a stream, one a line, as they come."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ... import UserError
from ..config.parsing import decoded

# The most bytes that are read at once.
CHUNK_BYTES = 1 << 20

_NAME = "standard input"


def line_parts(descriptor: int, pairs: bool) -> Iterator[tuple[list[str], list[str] | None]]:
    """Yields the texts of the lines that have come, and their second texts. Waits only if there is no whole line.

    Blank lines are passed over.

    Args:
        descriptor: A file descriptor with lines of UTF-8, ended by LF or CR LF. The last line may lack that.
        pairs: Whether a line is two texts with a tab between them. Otherwise it is one text.

    Raises:
        UserError: The input can't be read, a line is not UTF-8 or no pair, or all lines are blank.
    """
    number, offset, empty = 1, 0, True
    for lines in _whole_lines(descriptor):
        texts: list[str] = []
        seconds: list[str] = []
        for line in lines:
            text = decoded(line, _NAME, "write one text a line", offset, number).rstrip("\r\n")
            if text.strip():
                first, _, second = text.partition("\t") if pairs else (text, "", "")
                if pairs and not (first.strip() and second.strip()):
                    raise UserError(
                        f"{_NAME}, line {number} is no pair, and this run was trained on pairs; write two texts with a "
                        "tab between them"
                    )
                texts.append(first)
                seconds.append(second)
            number, offset = number + 1, offset + len(line)
        if texts:
            empty = False
            yield texts, seconds if pairs else None
    if empty:
        raise UserError(f"{_NAME} has no text; write one text a line")


def _whole_lines(descriptor: int) -> Iterator[list[bytes]]:
    """Yields the lines that have come, each with its LF, some at a time."""
    begun: list[bytes] = []
    while chunk := _read(descriptor):
        whole, end, rest = chunk.rpartition(b"\n")
        if end:
            yield [line + end for line in b"".join([*begun, whole]).split(end)]
            begun = []
        begun.append(rest)
    if last := b"".join(begun):
        yield [last]


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, CHUNK_BYTES)
    except OSError as error:
        raise UserError(f"{_NAME} can't be read ({error.strerror}); give one text a line") from error
