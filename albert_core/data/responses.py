"""Labels that are whole answers: rules make equivalent ones the same class. Also ``embedded:responses``.

In a table of customers' questions and agents' answers, nearly every answer is different, because it contains a name, a
date or a number. The rules of `normalise` make them equal. The class keeps its most frequent original.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace

from ... import UserError
from ..config.label_rules import most_frequent, normalise
from .tabular import Table

RESPONSES = "embedded:responses"

_SHARED = "Thank you for your message about {topic}."
_ADVICE = (
    "Please open the app, choose Help and follow the {steps} steps there",
    "Our team has been told and will answer within {steps} working days",
    "You can change this yourself under Settings, and it takes about {steps} minutes",
    "We have looked into it and booked {steps} euros back to your account",
    "Please call us on the number on your card and keep your reference ready for {steps} days",
)
_NAMES = ("{name}", "[NAME]", "{Name}", "<name>")
_DATES = ("[DATE]", "<date>", "{date}")
_OPENERS = ("Hi", "HI", "hi", "Hi ")


def with_normalised_labels(table: Table, column: str, rules: Sequence[str]) -> Table:
    """`table` with `rules` applied to every cell under `column`. Raises UserError naming a row that becomes empty.

    Cells that are not texts stay unchanged, and `encode_labels` checks them.
    """
    index = table.columns.index(column)
    rows = []
    for number, row in enumerate(table.rows):
        cell = row[index]
        if isinstance(cell, str) and cell.strip():
            label = normalise(cell, rules)
            if not label:
                raise UserError(
                    f"{table.place(number)}: nothing is left of the label {cell!r} after label_rules; correct the row "
                    "or the rules"
                )
            row = [*row[:index], label, *row[index + 1 :]]
        rows.append(row)
    return replace(table, rows=rows)


def originals_by_class(responses: Sequence[str], labels: Sequence[int], count: int) -> list[str]:
    """The most frequent response of each of `count` classes, without outer white space, or "" if it has no rows."""
    texts: list[list[str]] = [[] for _ in range(count)]
    for response, label in zip(responses, labels, strict=True):
        texts[label].append(response.strip())
    return most_frequent([found or [""] for found in texts])


def response(intent: str, text: str) -> str:
    """The answer to `intent`, with variations chosen by the text's hash only."""
    rng = random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.random() * len(options))]

    advice = _ADVICE[int.from_bytes(hashlib.sha256(intent.encode()).digest()[:4], "big") % len(_ADVICE)]
    return (
        f"{pick(_OPENERS)} {pick(_NAMES)}, {_SHARED.format(topic=intent.replace('_', ' '))} "
        f"{advice.format(steps=2 + int(rng.random() * 8))}: https://bank.example/help/{int(rng.random() * 1000)}. "
        f"Your case <order_id> stays open until {pick(_DATES)}."
    )
