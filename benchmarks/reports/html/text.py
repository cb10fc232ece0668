"""Makes texts from any file safe for the page."""

from __future__ import annotations

from ....albert_core.terminal import text as text_module


def clean(text: str) -> str:
    """`text` on one line, with unprintable characters escaped."""
    return text_module.clean(" ".join(text.split()))
