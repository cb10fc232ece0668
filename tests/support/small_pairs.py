"""A small job of pairs: whether the second text says the same of the account as the first."""

from __future__ import annotations

import csv
import random
from pathlib import Path

SUBJECTS = ("the card", "a loan", "the transfer", "my login", "this fee", "the branch")
STATES = ("was lost", "is open", "went missing", "has arrived", "looks wrong", "was closed")


def write_pairs(folder: Path, train: int = 64, dev: int = 24, seed: int = 0) -> Path:
    """A folder with train.csv and dev.csv of (sentence1, sentence2, label); label 1 where both have one subject."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    for name, count in (("train", train), ("dev", dev)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["sentence1", "sentence2", "label"])
            for index in range(count):
                subject = generator.choice(SUBJECTS)
                others = [other for other in SUBJECTS if other != subject]
                second = subject if index % 3 else generator.choice(others)
                states = generator.choices(STATES, k=2)
                writer.writerow([f"{subject} {states[0]}", f"I heard {second} {states[1]}", int(index % 3 > 0)])
    return folder
