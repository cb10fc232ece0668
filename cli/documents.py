"""What `--json` prints: one object, its first key the name and version of what it is."""

from __future__ import annotations

import json
from typing import Any

import typer


def print_json(kind: str, values: dict[str, Any]) -> None:
    """Prints `values` as a document of the schema ``isotrain.KIND/1``, as results' files have it."""
    typer.echo(json.dumps({"schema": f"isotrain.{kind}/1", **values}, indent=2, ensure_ascii=False))
