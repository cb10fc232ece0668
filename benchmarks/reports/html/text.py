"""Texts of other people's files, made fit for a page."""

from __future__ import annotations

from collections.abc import Iterable

from ....albert_core.terminal import text as text_module


def clean(text: str) -> str:
    """`text` on one line, with what no page can show as its escape."""
    return text_module.clean(" ".join(text.split()))


def joined(parts: Iterable[str | None], separator: str = " · ") -> str:
    """The parts that there are."""
    return separator.join(part for part in parts if part)
