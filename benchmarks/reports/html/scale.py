"""From values to places on a chart: scales, round ticks, and how wide a text will be."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
# Pixels between the words of two ticks.
TICK_GAP = 14.0


@dataclass(frozen=True)
class Tick:
    """Where a tick is, and from where to where its words are: at the edge of a drawing they are not about it."""

    place: float
    words: str
    left: float
    right: float

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2


def placed(place: float, words: str, size: float, width: float) -> Tick:
    """A tick whose words keep between 0 and `width`."""
    room = text_width(words, size)
    left = max(0.0, min(place - room / 2, width - room))
    return Tick(place, words, left, left + room)


@dataclass(frozen=True)
class Scale:
    """Values between `low` and `high` on pixels between `start` and `end`; on a logarithmic one, zero is at `start`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log and value <= 0:
            return self.start
        low, high, at = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """At most `most` round values on the scale, in order."""
        return _log_ticks(self.low, self.high, most) if self.log else _even_ticks(self.low, self.high, most)

    def labelled(self, most: int) -> list[tuple[float, str]]:
        """At most `most` round values with their words."""
        ticks = self.ticks(most)
        return list(zip(ticks, (log_labels if self.log else tick_labels)(ticks), strict=True))

    def fitting(self, size: float, width: float) -> list[Tick]:
        """The most ticks of a horizontal scale whose words have room beside each other, all of them within `width`."""
        for most in range(12, 0, -1):
            ticks = [placed(self(value), words, size, width) for value, words in self.labelled(most)]
            if all(right.left - left.right >= TICK_GAP for left, right in pairwise(ticks)):
                return ticks
        return []


def scale_over(values: Iterable[float], start: float, end: float, log: bool = False, zero: bool = False) -> Scale:
    """A scale that holds all values with some room; `zero`: it begins there. A logarithmic one has zeros below it."""
    known = list(values)
    positive = [value for value in known if value > 0]
    if log:
        low, high = (min(positive), max(positive)) if positive else (0.1, 1.0)
        low, high = low / 1.25, high * 1.25
        if len(positive) < len(known):
            low = 10.0 ** (math.floor(math.log10(low)) - 1)
        if high / low < 10:
            middle = math.sqrt(low * high)
            low, high = min(low, middle / 3.2), max(high, middle * 3.2)
        return Scale(low, high, start, end, log=True)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if zero:
        return Scale(0.0, high * 1.02 or 1.0, start, end)
    # Equal values, or so nearly equal that their difference is rounding, still need an extent.
    room = 0.05 * (high - low) if high - low > 1e-12 * max(abs(low), abs(high)) else 0.5 * abs(high) or 0.5
    return Scale(low - room, high + room, start, end)


def _even_ticks(low: float, high: float, most: int) -> list[float]:
    if not math.isfinite(high - low) or high <= low:
        return []
    exponent = math.floor(math.log10((high - low) / most))
    step = next(
        step
        for step in (factor * 10.0 ** (exponent + up) for up in (0, 1) for factor in ROUND)
        if math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1 <= most
    )
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    grids = [[10.0**power * factor for power in range(first, last + 1) for factor in (1, 2, 5)]]
    for step in range(1, last - first + 2):
        grids.append([10.0**power for power in range(first, last + 1) if power % step == 0])
    for grid in grids:
        inside = [tick for tick in grid if low <= tick <= high]
        if len(inside) <= most:
            return inside
    return []


def tick_labels(ticks: list[float]) -> list[str]:
    """The ticks as texts, all with the digits that tell neighbours apart."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    steps = [abs(right - left) for left, right in pairwise(ticks)]
    smallest = min((step for step in steps if step > 0), default=largest or 1.0)
    if largest >= 1e6 or largest < 1e-3:
        # Ticks are multiples of their step up to rounding, which must not show.
        return [f"{round(tick / smallest) * smallest:.6g}" for tick in ticks]
    digits = max(0, -math.floor(math.log10(smallest) + 1e-9))
    digits += abs(round(smallest, digits) - smallest) > 1e-6 * smallest
    return [f"{tick:,.{digits}f}" for tick in ticks]


def log_labels(ticks: list[float]) -> list[str]:
    """Powers of ten and their multiples, in full where that is short."""
    powers = (f"{tick:.0e}".replace("e-0", "e-").replace("e+0", "e") for tick in ticks)
    return [f"{tick:,g}" if 1e-3 <= tick < 1e6 else power for tick, power in zip(ticks, powers, strict=True)]


def text_width(text: str, size: float) -> float:
    """Pixels that `text` takes at most, whichever sans-serif font the reader has (DejaVu Sans is among the widest)."""
    return size * sum(_advance(mark) for mark in text)


def _advance(mark: str) -> float:
    if unicodedata.east_asian_width(mark) in "WF":
        return 1.05
    if mark in "mwMW@%":
        return 1.0
    if mark.isdigit() or mark.islower():
        return 0.645
    if mark in " .,:;'|!ilj()[]/-":
        return 0.42
    return 0.8


def wrapped(text: str, width: float, size: float, most: int = 3) -> list[str]:
    """`text` in at most `most` lines of `width` pixels; what doesn't fit ends in an ellipsis."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        together = f"{line} {word}" if line else word
        if text_width(together, size) <= width:
            line = together
            continue
        if line:
            lines.append(line)
        while text_width(word, size) > width and len(word) > 1:
            cut = next(
                place for place in range(len(word) - 1, 0, -1) if place == 1 or text_width(word[:place], size) <= width
            )
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    lines += [line] if line else []
    if len(lines) > most:
        last = lines[most - 1]
        while last and text_width(last + "…", size) > width:
            last = last[:-1]
        lines = [*lines[: most - 1], last + "…"]
    return lines
