"""Rules that give texts with the same meaning one label: ``Hi {name}, 3 days`` and ``hi [NAME],  5 days``."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ... import UserError

# {name}, {{name}}, [DATE], <order_id>: only a few words, so that [a long remark] stays unchanged.
_PLACEHOLDER = re.compile(r"\{\{?\s*(\w[\w .-]{0,39}?)\s*\}?\}|\[\s*(\w[\w .-]{0,39}?)\s*\]|<\s*(\w[\w .-]{0,39}?)\s*>")
_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"']*[^\s<>\"'.,;:!?)\]}]", re.IGNORECASE)
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
# Dates, times, amounts and percentages are digits with signs between and around them.
_NUMBER = re.compile(r"[€£$]?(?<![\w<])\d+(?:[.,:/-]\d+)*(?:\s?%)?(?![\w>])")
_PUNCTUATION = re.compile(r"(?<!\w)[^\w\s<>]+|[^\w\s<>]+(?!\w)")


@dataclass(frozen=True)
class Rule:
    """A named step of the normalisation. `meaning` is its description in the documentation."""

    meaning: str
    apply: Callable[[str], str]


def _placeholder(match: re.Match[str]) -> str:
    name = next(group for group in match.groups() if group is not None)
    return "<" + re.sub(r"[\s.-]+", "_", name).lower() + ">"


RULES: dict[str, Rule] = {
    "unicode": Rule(
        "NFKC, plain quotes and dashes",
        lambda text: unicodedata.normalize("NFKC", text).translate(str.maketrans("‘’“”–—", "''\"\"--")),
    ),
    "placeholders": Rule(
        "`{name}`, `{{name}}`, `[NAME]` and `<name>` become `<name>`", lambda text: _PLACEHOLDER.sub(_placeholder, text)
    ),
    "urls": Rule("web addresses become `<url>`", lambda text: _URL.sub("<url>", text)),
    "emails": Rule("mail addresses become `<email>`", lambda text: _EMAIL.sub("<email>", text)),
    "numbers": Rule(
        "numbers, amounts, dates and times in digits become `<number>`", lambda text: _NUMBER.sub("<number>", text)
    ),
    "case": Rule("Unicode case folding", str.casefold),
    "punctuation": Rule("marks at the ends of words are removed", lambda text: _PUNCTUATION.sub(" ", text)),
    "white_space": Rule("a run becomes one space; none at the ends", lambda text: " ".join(text.split())),
}


def normalise(text: str, rules: Sequence[str]) -> str:
    """Applies `rules` to `text` in order. A rule is a name in `RULES`, or ``s/pattern/replacement/``."""
    for rule in rules:
        text = _step(rule)(text)
    return text


def check_rule(rule: str) -> str:
    """Returns `rule`. Raises UserError if it is neither a name in `RULES` nor a usable ``s/pattern/.../``."""
    _step(rule)
    return rule


def _step(rule: str) -> Callable[[str], str]:
    if rule in RULES:
        return RULES[rule].apply
    parts = rule.split("/")
    if rule[:2] != "s/" or len(parts) != 4 or parts[3]:
        raise UserError(
            f"rule {rule!r} is unknown; allowed are {', '.join(RULES)}, and s/pattern/replacement/ (a regular "
            "expression without slashes)"
        )
    try:
        pattern = re.compile(parts[1])
        pattern.sub(parts[2], "")
    except (re.error, IndexError) as error:
        raise UserError(f"rule {rule!r} has no usable regular expression ({error}); correct it") from error
    return lambda text: pattern.sub(parts[2], text)


def most_frequent(texts_of: Sequence[Sequence[str]]) -> list[str]:
    """The most frequent text of each list. Among equally frequent ones, the first in sorted order."""
    return [min(counts, key=lambda text: (-counts[text], text)) for counts in map(Counter, texts_of)]
