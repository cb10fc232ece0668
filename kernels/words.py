"""Words for messages of all floors."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """``1 label``, ``2 epochs``, ``1,000 processes``."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "sh", "tch")) else "s"
    return f"{number:,} {noun}{ending}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
