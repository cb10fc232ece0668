"""A small job of reading: who keeps what where, in SQuAD's own file format."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

NAMES = ("Anna", "Boris", "Chloé", "Dmitri", "Elena", "Farid", "Greta", "Hugo")
THINGS = ("a red bicycle", "the old map", "two keys", "a violin", "the ledger", "an oil-lamp")
PLACES = ("the cellar", "a tin box", "the north tower", "Room 12", "the boat-house", "an attic")


def squad(paragraphs: list[tuple[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """SQuAD's nesting around (context, questions)."""
    return {
        "version": "1.1",
        "data": [{"title": "T", "paragraphs": [{"context": context, "qas": qas} for context, qas in paragraphs]}],
    }


def question(number: int, asked: str, context: str, *answers: str) -> dict[str, Any]:
    """One of its questions; each answer stands where the context has it first."""
    given = [{"text": text, "answer_start": context.index(text)} for text in answers]
    return {"id": f"q{number}", "question": asked, "answers": given}


def paragraphs(count: int, sentences: int, seed: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """Contexts of several sentences, two questions on each; a question names the person, the answer is the place."""
    generator = random.Random(seed)
    made = []
    for number in range(count):
        names = generator.sample(NAMES, sentences)
        places = [generator.choice(PLACES) for _ in names]
        context = " ".join(
            f"{name} keeps {generator.choice(THINGS)} in {place}." for name, place in zip(names, places, strict=True)
        )
        qas: list[dict[str, Any]] = []
        for index in generator.sample(range(sentences), 2):
            asked = question(2 * number + len(qas), f"Where does {names[index]} keep it?", context)
            begin = context.index(" in ", context.index(names[index])) + len(" in ")
            asked["answers"] = [{"text": places[index], "answer_start": begin}]
            qas.append(asked)
        made.append((context, qas))
    return made


def write_questions(folder: Path, train: int = 16, dev: int = 6, sentences: int = 4) -> Path:
    """A folder with train.json and dev.json, of two questions a context."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate((("train", train), ("dev", dev))):
        (folder / f"{name}.json").write_text(json.dumps(squad(paragraphs(count, sentences, seed))), encoding="utf-8")
    return folder
