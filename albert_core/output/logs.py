"""A run's log: on the terminal, and as a file in its folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TextIO

from ..runs.files import open_to_append
from ..terminal.console import CleanFormatter
from .progress import terminal


@contextmanager
def log_to_terminal(level: str | None) -> Iterator[MemoryHandler]:
    """Logs on stderr from `level` up (None: nothing). Yields a handler that keeps lines until the folder is known."""
    from rich.logging import RichHandler

    logger = logging.getLogger("isotrain")
    previous = logger.level, logger.propagate
    console = terminal()
    screen: logging.Handler
    if console.is_terminal:
        screen = RichHandler(console=console, show_path=False, show_time=False, show_level=False, markup=False)
    else:
        # rich would wrap at 80 columns, but a log file is searched by line.
        screen = _LastingHandler()
    screen.setFormatter(_Loud("%(message)s"))
    screen.setLevel(logging.CRITICAL + 1 if level is None else level)
    early = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in (screen, early):
        logger.addHandler(handler)
    try:
        yield early
    finally:
        for handler in (screen, early):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(previous[0])
        logger.propagate = previous[1]


class _Loud(CleanFormatter):
    """Names the level of warnings and errors."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return line if record.levelno <= logging.INFO else f"{record.levelname} {line}"


class _LastingHandler(logging.StreamHandler[TextIO]):
    """Writes lines as long as possible. A closed pipe or a full disk is no reason to end a run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextmanager
def log_to_file(file: Path, early: MemoryHandler) -> Iterator[None]:
    """Also writes isotrain's whole log to `file`, beginning with the lines that `early` kept."""
    logger = logging.getLogger("isotrain")
    stream = open_to_append(file)
    on_disk = _LastingHandler(stream)
    on_disk.setFormatter(CleanFormatter("%(asctime)s %(levelname)s %(message)s"))
    early.setTarget(on_disk)
    early.flush()
    logger.removeHandler(early)
    logger.addHandler(on_disk)
    try:
        yield
    finally:
        logger.removeHandler(on_disk)
        with suppress(OSError):
            on_disk.close()
            stream.close()
