"""A process of its own that is given a specification on stdin and answers by one JSON document."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ... import UserError
from ...albert_core.processes.parent import end_with_parent
from ...albert_core.runs.files import write_json


def answer(work: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
    """Writes `work`'s document, or what the user can mend, to the file that the specification calls ``result``.

    Returns the exit code: 0, or 2 for a UserError.
    """
    end_with_parent()
    spec = json.load(sys.stdin)
    code = 0
    try:
        document = work(spec)
    except UserError as error:
        document = {"error": {"message": " ".join(str(error).split())}}
        code = 2
    write_json(Path(spec["result"]), document)
    return code
