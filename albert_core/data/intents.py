"""``embedded:intents``: bank customers' questions with labels, made from templates, so that a run needs no download.

The texts are generated, not collected. Figures on them show that training works, not how good a model is. The templates
are in intents.json and were written for this project.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from urllib.parse import parse_qsl

from ... import UserError

EMBEDDED_PREFIX = "embedded:"
EMBEDDED_NAMES = ("intents", "responses", "topics", "similarity")

DEFAULT_TRAIN = 77 * 40
DEFAULT_TEST = 77 * 10
MAX_TEXTS = 77 * 1000

_FAMILY_SHARE = 0.15
_OPENER_SHARE = 0.2
_CLOSER_SHARE = 0.2
_LOWER_CASE_SHARE = 0.15
_TYPO_SHARE = 0.2

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class IntentSizes:
    """The number of texts that `generate_intents` makes for training and test, and the seed."""

    train: int = DEFAULT_TRAIN
    test: int = DEFAULT_TEST
    seed: int = 0


@dataclass(frozen=True)
class Family:
    """Phrases that customers with several related intents use. They reveal the family, not the intent."""

    intents: list[str]
    sentences: list[str]


@dataclass(frozen=True)
class Templates:
    """What the texts are made of. In a template, ``{slot}`` is filled from `slots`, and ``[a|b|c]`` is one of the
    alternatives (``[|x]``: x or nothing).

    `openers` and `closers` stand before and after the question. They vary the length and say nothing about the intent.
    """

    slots: dict[str, list[str]]
    openers: list[str]
    closers: list[str]
    intents: dict[str, list[str]]
    families: list[Family]


@cache
def templates() -> Templates:
    """The contents of intents.json."""
    read = json.loads(files(__package__).joinpath("intents.json").read_text(encoding="utf-8"))
    return Templates(**read | {"families": [Family(**family) for family in read["families"]]})


@dataclass(frozen=True)
class GeneratedIntents:
    """Texts and class ids of both splits; `label_names[id]` is the intent."""

    train: tuple[list[str], list[int]]
    test: tuple[list[str], list[int]]
    label_names: tuple[str, ...]


def parse_embedded_id(dataset_id: str) -> IntentSizes:
    """The sizes in ``embedded:intents?train=2000&test=500&seed=1``, or another embedded name. Each may be left out.

    The seed belongs to the data: a run's `seed` changes its training, not its data.

    Raises:
        UserError: Another name, an unknown or repeated key, or a value that is no integer or out of range (at least 77
            texts per split, at most MAX_TEXTS in total).
    """
    name, _, query = dataset_id.removeprefix(EMBEDDED_PREFIX).partition("?")
    if name not in EMBEDDED_NAMES:
        allowed = ", ".join(EMBEDDED_PREFIX + known for known in EMBEDDED_NAMES)
        raise UserError(f"dataset_id {dataset_id!r} is unknown; the embedded data sets are {allowed}")
    sizes: dict[str, int] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in ("train", "test", "seed") or key in sizes:
            raise UserError(
                f"dataset_id {dataset_id!r} has {key!r} {'twice' if key in sizes else 'which is unknown'}; "
                "allowed are train, test and seed, as in embedded:intents?train=2000&test=500"
            )
        if not (value.isascii() and value.isdigit() and len(value) <= 9):
            raise UserError(f"dataset_id {dataset_id!r}: {key} is {value!r}; give a whole number")
        sizes[key] = int(value)
    chosen = IntentSizes(**sizes)
    count = len(templates().intents)
    if min(chosen.train, chosen.test) < count or chosen.train + chosen.test > MAX_TEXTS:
        raise UserError(
            f"dataset_id {dataset_id!r} asks for {chosen.train} + {chosen.test} texts; allowed are at least {count} in "
            f"each split (one an intent) and {MAX_TEXTS:,} in all"
        )
    return chosen


def generate_intents(train: int = DEFAULT_TRAIN, test: int = DEFAULT_TEST, seed: int = 0) -> GeneratedIntents:
    """Generates `train` + `test` texts over 77 intents, as evenly as possible, in an order unrelated to the labels.

    No text occurs twice within a split or across both, ignoring case. The same arguments give the same texts on every
    machine and Python version, because all choices come from ``random.Random.random``, and Python guarantees its
    sequence. The test texts depend only on `test` and `seed`.
    """
    names = tuple(templates().intents)
    taken: set[str] = set()
    splits = []
    for split, total in (("test", test), ("train", train)):
        rows: list[tuple[str, int]] = []
        for label, name in enumerate(names):
            count = total // len(names) + (label < total % len(names))
            rows += [(text, label) for text in _texts_of(name, count, f"{seed}/{split}", taken)]
        rows.sort(key=lambda row: hashlib.sha256(f"{seed}/{row[0]}".encode()).digest())
        splits.append(([text for text, _ in rows], [label for _, label in rows]))
    return GeneratedIntents(train=splits[1], test=splits[0], label_names=names)


def _texts_of(name: str, count: int, seed: str, taken: set[str]) -> list[str]:
    """`count` texts of one intent that aren't in `taken` (lower-cased). Adds them to it."""
    rng = random.Random(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big"))
    family = next((family.sentences for family in templates().families if name in family.intents), [])
    texts: list[str] = []
    while len(texts) < count:
        text = _sentence(rng, templates().intents[name], family)
        if text.lower() not in taken:
            taken.add(text.lower())
            texts.append(text)
    return texts


def _sentence(rng: random.Random, own: Sequence[str], family: Sequence[str]) -> str:
    template = _pick(rng, family if family and rng.random() < _FAMILY_SHARE else own)
    opener = _pick(rng, templates().openers) if rng.random() < _OPENER_SHARE else ""
    closer = _pick(rng, templates().closers) if rng.random() < _CLOSER_SHARE else ""
    core = _filled(rng, template)
    opener, closer = _filled(rng, opener), _filled(rng, closer)
    if not opener.endswith((", ", ": ", "but ")):
        core = core[0].upper() + core[1:]
    elif not core.startswith("I "):
        core = core[0].lower() + core[1:]
    text = " ".join((opener + core + closer).split())
    if rng.random() < _LOWER_CASE_SHARE:
        text = text.lower()
    if rng.random() < _TYPO_SHARE:
        text = _with_typo(rng, text)
    return text


def _filled(rng: random.Random, template: str) -> str:
    # Twice, because an alternative may contain a slot, and a filler a slot of its own.
    text = _CHOICE.sub(lambda match: _pick(rng, match.group(1).split("|")), template)
    for _ in range(2):
        text = _SLOT.sub(lambda match: _pick(rng, templates().slots[match.group(1)]), text)
    return text


def _with_typo(rng: random.Random, text: str) -> str:
    """The text without one of its inner letters."""
    words = text.split(" ")
    index = int(rng.random() * len(words))
    word = words[index]
    if len(word) < 4 or not word.isalpha():
        return text
    at = 1 + int(rng.random() * (len(word) - 2))
    words[index] = word[:at] + word[at + 1 :]
    return " ".join(words)


def _pick(rng: random.Random, options: Sequence[str]) -> str:
    return options[int(rng.random() * len(options))]
