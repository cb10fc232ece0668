"""What `--json` prints: one object that begins with its schema."""

from __future__ import annotations

from typing import Any

from ..albert_core.terminal.console import say_json


def print_json(kind: str, values: dict[str, Any]) -> None:
    """Prints `values` as a document of the schema ``isotrain.KIND/1``."""
    say_json({"schema": f"isotrain.{kind}/1", **values})
