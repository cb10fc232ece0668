"""How wide a chart's words are and where they break, whichever sans-serif font the reader has."""

from __future__ import annotations

import unicodedata

from ..terminal.text import clean

# Font size of all words of a chart, and distance of their lines, in pixels.
SIZE, LINE = 13, 18


def text_width(text: str) -> float:
    """The largest width of `text` in pixels. DejaVu Sans, which is measured, is among the widest fonts."""
    return SIZE * sum(_advance(mark) for mark in text)


def _advance(mark: str) -> float:
    if unicodedata.east_asian_width(mark) in "WF":
        return 1.05
    if mark in "mwMW@%":
        return 1.0
    if mark.isdigit() or mark.islower():
        return 0.645
    return 0.42 if mark in " .,:;'|!ilj()[]/-" else 0.8


def wrapped(text: str, width: float, most: int) -> list[str]:
    """`text` in at most `most` lines of `width` pixels. If it doesn't fit, it ends in an ellipsis."""
    lines = [""]
    for word in clean(text).split():
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if text_width(joined) <= width:
            lines[-1] = joined
            continue
        lines.append("")
        for mark in word:
            # A word longer than a line is broken at the line's end.
            if lines[-1] and text_width(lines[-1] + mark) > width:
                lines.append("")
            lines[-1] += mark
    lines = [line for line in lines if line]
    if len(lines) > most:
        last = lines[most - 1]
        while last and text_width(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], last + "…"]
    return lines
