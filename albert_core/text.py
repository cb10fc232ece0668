"""Texts from outside, made fit to be shown: labels, paths, names and values of files that a stranger may have made."""

from __future__ import annotations

import unicodedata

# Of a value repeated in a message; a message itself holds a few of them.
SHORT = 120


def clean(text: str) -> str:
    """`text` without what steers a terminal or reorders a line: each such character as its escape (``\\x1b``).

    Control characters (line breaks and tabs too), format characters such as bidirectional overrides, surrogates and
    private use (Unicode's categories Cc, Cf, Cs, Co, Zl, Zp). Joiners that scripts and emoji need stay.
    """
    if text.isprintable():
        return text
    return "".join(character if _is_shown(character) else _escaped(character) for character in text)


def shorten(text: str, limit: int = SHORT) -> str:
    """`text` in at most `limit` characters: where it is longer, its middle is left out and said to be."""
    if len(text) <= limit:
        return text
    mark = f" ... {len(text) - limit:,} more ... "
    kept = max(2, limit - len(mark))
    return text[: (kept + 1) // 2] + mark + text[len(text) - kept // 2 :]


def quoted(value: object, limit: int = SHORT) -> str:
    """`value` as Python writes it, cleaned and shortened: how messages repeat what was given."""
    return shorten(clean(repr(value)), limit)


def _is_shown(character: str) -> bool:
    if character in "\u200c\u200d":
        return True
    return unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
