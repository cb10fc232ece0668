"""Small jobs of the tasks beside single labels: several labels a text, scored pairs, questions without an answer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.small_job import WORDS
from support.small_questions import paragraphs, squad

TOPICS = tuple(WORDS)


def write_topics(folder: Path, train: int = 96, test: int = 32, seed: int = 0, *, pairs: bool = False) -> Path:
    """A folder with train.jsonl and test.jsonl of texts and the topics that their words are of, from none to three.

    With `pairs`, half of the words are in a second text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    for name, count in (("train", train), ("test", test)):
        rows = []
        for _ in range(count):
            topics = generator.sample(TOPICS, generator.randint(0, 3))
            words = [word for topic in topics for word in generator.choices(WORDS[topic].split(), k=3)]
            generator.shuffle(words)
            half = len(words) // 2 if pairs else len(words)
            texts = {"text": " ".join(["hello", *words[:half]])}
            texts |= {"text_pair": " ".join(["again", *words[half:]])} if pairs else {}
            rows.append(texts | {"labels": topics})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_scores(folder: Path, train: int = 96, test: int = 32, seed: int = 0) -> Path:
    """A folder with train.jsonl and test.jsonl of pairs with a score from 0 to 5, by the words that both have."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    known = sorted({word for words in WORDS.values() for word in words.split()})
    for name, count in (("train", train), ("test", test)):
        rows = []
        for _ in range(count):
            first, shared = generator.sample(known, 4), generator.randint(0, 4)
            second = first[:shared] + generator.sample(known, 4 - shared)
            score = 5.0 * len(set(first) & set(second)) / 4
            rows.append({"sentence1": " ".join(first), "sentence2": " ".join(second), "score": score})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def unanswerable(known: list[tuple[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """SQuAD 2.0's nesting of `paragraphs`: of each, the second question asks for somebody who isn't in the context."""
    for context, (answered, asked) in known:
        answered["is_impossible"] = False
        plausible = {"text": context.split()[0], "answer_start": 0}
        asked |= {"question": "Where does Zoe keep it?", "answers": [], "plausible_answers": [plausible]}
        asked["is_impossible"] = True
    return squad(known) | {"version": "v2.0"}


def write_unanswerable(folder: Path, train: int = 16, dev: int = 6, sentences: int = 4) -> Path:
    """A folder with train-v2.0.json and dev-v2.0.json, of one question with and one without an answer a context."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate((("train", train), ("dev", dev))):
        content = unanswerable(paragraphs(count, sentences, seed))
        (folder / f"{name}-v2.0.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
