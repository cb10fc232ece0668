"""Texts of other people's files, made fit for a page."""

from __future__ import annotations

from ....albert_core.terminal import text as text_module


def clean(text: str) -> str:
    """`text` on one line, with what no page can show as its escape."""
    return text_module.clean(" ".join(text.split()))
