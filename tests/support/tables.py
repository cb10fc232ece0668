"""Tables that tests measure and the suite prints at its end: what was caught, how near, how often."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_tables: dict[str, tuple[Sequence[str], list[list[str]]]] = {}


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Adds rows to the table `title`, which is printed when the suite ends."""
    _, kept = _tables.setdefault(title, (columns, []))
    kept += [["-" if value is None else str(value) for value in row] for row in rows]


def printed() -> list[str]:
    """Every table as lines of Markdown."""
    lines = []
    for title, (columns, rows) in _tables.items():
        lines += ["", f"{title}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return lines
