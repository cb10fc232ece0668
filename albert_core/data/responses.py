"""Labels that are whole answers: those that say the same are one class, by rules; and ``embedded:responses``.

A table of customers' questions and agents' answers has as many different answers as rows, for each holds a name, a
date or a number of its own. The rules of `normalise` make them one text; the class keeps its most frequent original.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace

from ... import UserError
from ..config.label_rules import most_frequent, normalise
from .intents import generate_intents, parse_embedded_id
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
    """`table` with every cell under `column` after `rules`. Raises UserError naming the row of one that leaves nothing.

    Cells that are no texts stay as they are, for `encode_labels` to judge.
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
    """For each of `count` classes, its rows' most frequent response without outer white space; "" where it has none."""
    texts: list[list[str]] = [[] for _ in range(count)]
    for response, label in zip(responses, labels, strict=True):
        texts[label].append(response.strip())
    return most_frequent([found or [""] for found in texts])


def response_tables(dataset_id: str) -> tuple[Table, Table]:
    """``embedded:responses``: the texts of ``embedded:intents``, each with an answer instead of its intent.

    One answer an intent, written in many ways: placeholders, numbers, addresses, case and spaces differ from row to
    row. Sizes and seed as there. Raises UserError for sizes that can't be.
    """
    sizes = parse_embedded_id(dataset_id)
    generated = generate_intents(sizes.train, sizes.test, sizes.seed)
    tables = []
    for split, (texts, labels) in (("train", generated.train), ("test", generated.test)):
        rows = [
            [text, _response(generated.label_names[label], text)] for text, label in zip(texts, labels, strict=True)
        ]
        tables.append(Table(f"{dataset_id} ({split})", ["text", "response"], rows, range(len(rows)), "row"))
    return tables[0], tables[1]


def _response(intent: str, text: str) -> str:
    """The answer to `intent`, written as only this text's hash decides."""
    rng = random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.random() * len(options))]

    advice = _ADVICE[int.from_bytes(hashlib.sha256(intent.encode()).digest()[:4], "big") % len(_ADVICE)]
    return (
        f"{pick(_OPENERS)} {pick(_NAMES)}, {_SHARED.format(topic=intent.replace('_', ' '))} "
        f"{advice.format(steps=2 + int(rng.random() * 8))}: https://bank.example/help/{int(rng.random() * 1000)}. "
        f"Your case <order_id> stays open until {pick(_DATES)}."
    )
