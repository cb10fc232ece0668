"""What commands write: `--json` prints one object that begins with its schema, and `--html` names a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..albert_core.terminal.console import say_json


def print_json(kind: str, values: dict[str, Any]) -> None:
    """Prints `values` as a document of the schema ``isotrain.KIND/1``."""
    say_json({"schema": f"isotrain.{kind}/1", **values})


def check_html(path: Path | None) -> None:
    """Raises UserError if `--html` can't name a page, before any work."""
    from .. import UserError
    from ..albert_core.runs.files import check_place

    if path is not None and (path.suffix.lower() not in (".html", ".htm") or not path.absolute().parent.is_dir()):
        raise UserError(f"--html {str(path)!r}: give a file that ends in .html, in a folder that exists")
    if path is not None:
        check_place(path, "--html")
