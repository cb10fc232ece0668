"""A separate process that reads a specification from stdin and answers with one JSON file."""

from __future__ import annotations

import atexit
import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ... import RunError, UserError
from ...albert_core.processes.parent import end_with_parent
from ...albert_core.runs.files import write_json
from .document import RUN, TARGET, Part, Refusal, Refused, Spec

Given = TypeVar("Given", bound=Spec)
Answer = TypeVar("Answer", bound=Part)


class Stages:
    """Seconds of each phase of a process, and which targets an error in the present one concerns."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.scope = RUN

    @contextmanager
    def phase(self, name: str, scope: str) -> Iterator[None]:
        self.scope = scope
        start = time.perf_counter_ns()
        yield
        self.seconds[name] = (time.perf_counter_ns() - start) / 1e9


def answer(given: type[Given], work: Callable[[Given], Part], scope: Callable[[], str] = lambda: TARGET) -> int:
    """Writes the result of `work`, or its error, to the file that the specification names.

    Args:
        given: The model of the specification.
        scope: Returns which targets an error concerns.

    Returns:
        The exit code: 0, or 2 for a UserError or a RunError.
    """
    end_with_parent()
    # At its end, the interpreter looks for garbage in all that was imported; torch and transformers take it a second.
    atexit.register(gc.freeze)
    spec = given.model_validate_json(sys.stdin.read())
    code = 0
    try:
        document = work(spec)
    except (UserError, RunError) as error:
        document = Refusal(error=Refused(message=" ".join(str(error).split()), scope=scope()))
        code = 2
    write_json(Path(spec.result), document.document())
    return code


def read_answer(path: Path, kind: type[Answer]) -> Answer | Refused:
    """Reads the answer of a process.

    Raises:
        FileNotFoundError: It left none.
        ValueError: It is incomplete.
    """
    text = path.read_text(encoding="utf-8")
    try:
        return Refusal.model_validate_json(text).error
    except ValueError:
        return kind.model_validate_json(text)
