"""Texts of other people's files, made fit for a page."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

# Controls and lone surrogates have no place in HTML; bidirectional overrides would turn the text beside them around.
_UNWANTED = {"Cc", "Cs", "Co", "Cn"}
_OVERRIDES = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean(text: str) -> str:
    """`text` on one line, with what no page can show replaced by U+FFFD."""
    shown = (
        "\ufffd" if unicodedata.category(mark) in _UNWANTED or mark in _OVERRIDES else mark
        for mark in " ".join(text.split())
    )
    return "".join(shown)


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def joined(parts: Iterable[str | None], separator: str = " · ") -> str:
    """The parts that there are."""
    return separator.join(part for part in parts if part)
