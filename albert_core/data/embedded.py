"""The embedded data sets as tables: the texts of `intents`, with the labels that each set has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from .intents import EMBEDDED_PREFIX, generate_intents, parse_embedded_id
from .responses import response
from .tabular import Table

# The words of the intents' names that are the labels of ``embedded:topics``.
TOPICS = (
    *("account", "card", "cash", "currency", "deposit", "fee"),
    *("payment", "pending", "rate", "refused", "topup", "transfer", "withdrawal"),
)
# The score of two texts with the same intent, as in STS-B.
MOST_SIMILAR = 5.0


def embedded_tables(dataset_id: str) -> tuple[Table, Table, list[str] | None]:
    """The training and the test split, with the label in the last column, and the label names if they have an order.

    - ``embedded:intents``: texts, each with its intent.
    - ``embedded:responses``: each with an answer. An intent has one answer, but placeholders, numbers, addresses, case
      and spaces differ from row to row.
    - ``embedded:topics``: two texts in one, and the `TOPICS` that occur in the names of their intents.
    - ``embedded:similarity``: pairs of texts. The score is the share of the words in the names of their intents that
      both have, times `MOST_SIMILAR`.

    Raises:
        UserError: An unknown name, or impossible sizes.
    """
    sizes = parse_embedded_id(dataset_id)
    generated = generate_intents(sizes.train, sizes.test, sizes.seed)
    name = dataset_id.removeprefix(EMBEDDED_PREFIX).partition("?")[0]
    tables = []
    for split, (texts, labels) in (("train", generated.train), ("test", generated.test)):
        intents = [generated.label_names[label] for label in labels]
        columns, rows = _rows(name, texts, intents)
        tables.append(Table(f"{dataset_id} ({split})", columns, rows, range(len(rows)), "row"))
    return tables[0], tables[1], list(generated.label_names) if name == "intents" else None


def _rows(name: str, texts: Sequence[str], intents: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """The columns and rows of one split."""
    pairs = list(zip(texts, intents, strict=True))
    following = [*pairs[1:], pairs[0]]
    match name:
        case "responses":
            return ["text", "response"], [[text, response(intent, text)] for text, intent in pairs]
        case "topics":
            return ["text", "labels"], [
                [f"{one} {two}", [topic for topic in TOPICS if topic in f"{first}_{second}".split("_")]]
                for (one, first), (two, second) in zip(pairs, following, strict=True)
            ]
        case "similarity":
            others = _partners(intents)
            return ["sentence1", "sentence2", "score"], [
                [text, texts[other], _similarity(intent, intents[other])]
                for (text, intent), other in zip(pairs, others, strict=True)
            ]
    return ["text", "label"], [[text, intent] for text, intent in pairs]


def _partners(intents: Sequence[str]) -> list[int]:
    """For each text, the row of its second: in turn the next one with the same intent, a related one, any."""
    wanted = (MOST_SIMILAR, 1.0, 0.0)
    found = []
    for row, intent in enumerate(intents):
        others = chain(range(row + 1, len(intents)), range(row))
        near = (other for other in others if _similarity(intent, intents[other]) >= wanted[row % len(wanted)])
        found.append(next(near, row - 1))
    return found


def _similarity(first: str, second: str) -> float:
    one, two = set(first.split("_")), set(second.split("_"))
    return round(MOST_SIMILAR * len(one & two) / len(one | two), 2)
