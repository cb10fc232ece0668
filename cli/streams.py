"""Makes the three standard streams usable: they may be closed, full, or a terminal without some characters."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import RunError
from ..albert_core.terminal.text import redacted

_STDOUT, _STDERR = 1, 2


class OutputLostError(RunError):
    """stdout can't be written, since its disk is full or broken."""


def settle_streams() -> None:
    """Makes every standard stream usable.

    A closed one becomes /dev/null, also for child processes. Otherwise the next opened file would get its number. What
    stderr can't write is dropped. What stdout can't write raises an OutputLostError.
    """
    for name, number in (("stdin", 0), ("stdout", _STDOUT), ("stderr", _STDERR)):
        _fill(number)
        stream = getattr(sys, name)
        if stream is None:
            # It stays open for as long as the process lives.
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 (a stream, not a block's file)
        elif number != 0 and isinstance(stream, io.TextIOWrapper):
            # A terminal that can't show a character gets its code instead of a traceback.
            stream.reconfigure(errors="backslashreplace")
            if _writes_to(stream, number):
                setattr(sys, name, _guarded(stream, number))


@contextmanager
def kept(what: str) -> Iterator[None]:
    """A context for printing about finished work. If stdout can't be written, the error says that the work is kept.

    Args:
        what: What is complete, and where it is.

    Raises:
        RunError: stdout can't be written.
    """
    try:
        yield
    except BrokenPipeError as error:
        raise RunError(f"{what}; stdout's reader went away before all of it was printed") from error
    except OutputLostError as error:
        raise RunError(f"{what}; {error}") from error


def _fill(number: int) -> None:
    """Opens /dev/null as file `number` if that is closed."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        # Child processes inherit it, like a shell's streams.
        os.set_inheritable(number, True)


def _writes_to(stream: io.TextIOWrapper, number: int) -> bool:
    """Whether it is the process's stream and not a replacement."""
    try:
        return stream.fileno() == number
    except io.UnsupportedOperation:
        return False


class _Redacted(io.TextIOWrapper):
    """A stream that shows no secrets, even if libraries write URLs to it."""

    def write(self, text: str, /) -> int:
        super().write(redacted(text))
        return len(text)


def _guarded(stream: io.TextIOWrapper, number: int) -> io.TextIOWrapper:
    """The same stream without secrets, with the error handling of `_Guarded`."""
    stream.flush()
    return _Redacted(
        io.BufferedWriter(_Guarded(number, "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Guarded(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            number = self.fileno()
            # Later output is lost, too, and must not raise another error when the process ends.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
            if number == _STDERR:
                return len(memoryview(data).cast("B"))
            if error.errno == errno.EPIPE:
                raise
            reason = error.strerror or str(error)
            raise OutputLostError(f"stdout can't be written ({reason}); send it elsewhere") from error
