"""A process of its own that is given a specification on stdin and answers by one JSON document."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ... import RunError, UserError
from ...albert_core.processes.parent import end_with_parent
from ...albert_core.runs.files import write_json
from .document import TARGET, Part, Refusal, Refused, Spec

Given = TypeVar("Given", bound=Spec)
Answer = TypeVar("Answer", bound=Part)


def answer(given: type[Given], work: Callable[[Given], Part], scope: Callable[[], str] = lambda: TARGET) -> int:
    """Writes what `work` makes of the specification, or what the user can mend, to the file that it names.

    scope: whom an error concerns. Returns the exit code: 0, or 2 for a UserError or a RunError.
    """
    end_with_parent()
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
    """The document that a process left at `path`. Raises FileNotFoundError, and ValueError for what is none."""
    text = path.read_text(encoding="utf-8")
    try:
        return Refusal.model_validate_json(text).error
    except ValueError:
        return kind.model_validate_json(text)
