"""The small job's data, and readers of what a run wrote."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

from isotrain.albert_core.config.load import as_set
from isotrain.albert_core.loop.train import TrainResult

WORDS = {
    "card": "card plastic chip pin lost stolen broken new order",
    "loan": "loan borrow credit rate interest mortgage repay term money",
    "transfer": "transfer send payment wire account abroad recipient pending arrived",
    "login": "login password app phone locked access code reset username",
    "fee": "fee charge cost extra monthly refund withdrawal statement twice",
    "branch": "branch office open hours visit near address appointment closed",
}


def write_dataset(folder: Path, train: int = 90, test: int = 30, seed: int = 0) -> Path:
    """A folder with train.csv and test.csv whose labels can be told from the words."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    for name, count in (("train", train), ("test", test)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for index in range(count):
                label = list(WORDS)[index % len(WORDS)]
                words = generator.choices(WORDS[label].split(), k=generator.randint(3, 12))
                writer.writerow([" ".join(words), label])
    return folder


def metrics(result: TrainResult) -> list[dict[str, Any]]:
    """The run's metrics.jsonl."""
    return [json.loads(line) for line in result.run.metrics.read_text().splitlines()]


def losses(result: TrainResult) -> list[tuple[int, float]]:
    """(step, train/loss) of every log line."""
    return [(item["step"], item["train/loss"]) for item in metrics(result) if "train/loss" in item]


def settings(data: Path, folder: Path, **overrides: Any) -> list[str]:
    """The small job as ``key=value`` strings: tiny random encoder, float32, runs under `folder`."""
    values = {
        "dataset_id": str(data),
        "model_name": "random:tiny",
        "dtype": "float32",
        "max_length": 32,
        "batch_size": 8,
        "num_epochs": 2,
        "learning_rate": 1e-2,
        "mlp_hidden_size": 16,
        "steps_freq": 4,
        "project_dir": str(folder / "runs"),
    } | overrides
    return [as_set(key, value) for key, value in values.items()]
