"""Terminal output. External text (a label, a path, an error message) must not control the terminal. Every line and
every rich console therefore comes from here, and its text is cleaned last.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from .text import clean, json_text, redacted

if TYPE_CHECKING:
    from rich.console import Console


def say(line: str, *, err: bool = False) -> None:
    """Prints one line. A line break in it is escaped."""
    say_lines([line], err=err)


def say_lines(lines: Iterable[str], *, err: bool = False) -> None:
    """Prints lines, with `err` on stderr."""
    stream = sys.stderr if err else sys.stdout
    stream.write("".join(f"{clean(line)}\n" for line in lines))
    stream.flush()


def say_json(value: Any) -> None:
    """Prints a value as indented JSON."""
    say_lines(json_text(value).split("\n"))


def new_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A rich console without markup and emoji codes. It stops silently when its reader is gone."""
    # By default, rich keeps bold and dim under NO_COLOR, and uses colours if that is empty.
    colors: Literal["auto"] | None = None if "NO_COLOR" in os.environ else "auto"
    return _class()(stderr=stderr, width=width, color_system=colors, markup=False, emoji=False, highlight=False)


def trimmed(text: str) -> str:
    """`text` without spaces before its line breaks."""
    return re.sub(" +(?=\n)", "", text)


@contextmanager
def quieted(library: str) -> Iterator[None]:
    """Keeps the warnings that a library logs off the terminal. What matters of them is checked and raised here."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class CleanFormatter(logging.Formatter):
    """One line per record, whatever its texts contain. A traceback below keeps its lines, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        return clean(super().formatMessage(record))


@cache
def _class() -> type[Console]:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    def without_padding(segments: Iterable[Segment]) -> Iterable[Segment]:
        """The segments without the spaces that lines end with, which rich pads every line with."""
        spaces: list[Segment] = []
        for segment in segments:
            text = trimmed(segment.text)
            kept = text.rstrip(" ")
            if kept or segment.control:
                yield from [] if kept.startswith("\n") else spaces
                yield Segment(kept, segment.style, segment.control)
                spaces = []
            if kept != text:
                spaces.append(Segment(text[len(kept) :], segment.style))
        yield from spaces

    class CleanConsole(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            rendered = self._clean(super().render(renderable, options))
            return rendered if self.is_terminal else without_padding(rendered)

        def _clean(self, segments: Iterable[Segment]) -> Iterable[Segment]:
            for segment in segments:
                if segment.control or segment.text == "\n" or clean(segment.text) == segment.text:
                    yield segment
                else:
                    yield Segment("\n".join(map(clean, segment.text.split("\n"))), segment.style)

        def on_broken_pipe(self) -> None:
            # A run is worth more than its log.
            self.quiet = True

    return CleanConsole
