"""Each packaged recipe's losses over twenty steps, float32, against the plain transformers script beside this file."""

from __future__ import annotations

import csv
import json
import math
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isotrain.albert_core.config.load import as_set, load_config
from isotrain.albert_core.config.lora import LoraOptions
from isotrain.albert_core.loop.train import train
from isotrain.albert_core.model.adapters import add_adapters
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.albert_core.model.head import sequence_head
from isotrain.albert_core.tokens.order import epoch_order
from reference import plain_loop
from support.small_job import losses
from torch import Tensor
from transformers import AutoModel

STEPS = 20
HIDDEN = 32
ANSWERS = {
    "card": ["Hi {name}, 5 days.", "hi [NAME],  7 days."],
    "loan": ["See https://b.example/1", "see https://b.example/2!"],
    "fee": ["We take 3 EUR", "we take 5 eur."],
}


@dataclass(frozen=True)
class Case:
    """A packaged recipe, the columns of its CSV, and what its configuration says in the plain script's words."""

    config: str
    model: str
    columns: tuple[str, ...]
    recipe: plain_loop.Recipe
    seed: int
    keys: dict[str, Any] = field(default_factory=dict)


def recipe(**values: Any) -> plain_loop.Recipe:
    return plain_loop.Recipe(**{"steps": STEPS, "max_length": 128} | values)


def checkpoints_pooler(folder: Path) -> dict[str, Tensor]:
    """The weights of the pooler in `folder`, under our head's names."""
    pooler = AutoModel.from_pretrained(folder).pooler
    return {f"pooler.{name.removeprefix('dense.')}": weight for name, weight in pooler.state_dict().items()}


SUBJECTIVE = recipe(learning_rate=4e-5, batch_size=16, schedule="cosine", warmup_steps=math.ceil(0.2 * STEPS), clip=1.0)
ANSWERING = recipe(
    learning_rate=2e-3,
    batch_size=8,
    accumulation=4,
    weight_decay=0.01,
    decay_all=False,
    schedule="cosine",
    warmup_steps=math.ceil(0.05 * STEPS),
    clip=1.0,
    max_length=64,
)

CASES = {
    "csv": Case(
        "csv_intents",
        "albert",
        ("text", "response"),
        replace(ANSWERING, learning_rate=3e-5),
        seed=23,
        keys={"learning_rate": 3e-5},
    ),
    "csv, frozen": Case(
        "csv_intents",
        "albert",
        ("text", "response"),
        replace(ANSWERING, frozen=True),
        seed=23,
        keys={"freeze_encoder": True},
    ),
    "subj": Case("subj", "albert", ("text", "label"), SUBJECTIVE, seed=42),
    "subj, mlp": Case("subj", "albert", ("text", "label"), SUBJECTIVE, seed=42, keys={"head": "mlp"}),
    "mrpc": Case(
        "mrpc",
        "bert",
        ("sentence1", "sentence2", "label"),
        recipe(learning_rate=3e-5, batch_size=8, weight_decay=0.01, schedule="linear"),
        seed=42,
    ),
    "banking77": Case(
        "banking77",
        "albert",
        ("text", "label"),
        recipe(learning_rate=1e-3, batch_size=8, weight_decay=0.01, frozen=True),
        seed=23,
        keys={"num_labels": 3},
    ),
    "banking77, adapters": Case(
        "banking77_lora",
        "albert",
        ("text", "label"),
        recipe(
            learning_rate=1e-3,
            batch_size=8,
            weight_decay=0.01,
            schedule="linear",
            warmup_steps=math.ceil(0.1 * STEPS),
            lora_rank=8,
            lora_targets=("query", "value"),
        ),
        seed=23,
        keys={"num_labels": 3},
    ),
}


def write_data(folder: Path, case: Case, words: list[str]) -> list[int]:
    """train.csv, with as many rows as the steps take, and a small dev.csv; returns the training labels."""
    draw = random.Random(5)
    rows = STEPS * case.recipe.batch_size * case.recipe.accumulation
    folder.mkdir()
    labels = []
    for name, count in (("train", rows), ("dev", 12)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(case.columns)
            for number in range(count):
                label = number % (2 if case.config in ("subj", "mrpc") else 3)
                texts = [" ".join(draw.choices(words, k=draw.randint(2, 24))) for _ in case.columns[1:]]
                topic = list(ANSWERS)[label]
                shown = draw.choice(ANSWERS[topic]) if case.columns[-1] == "response" else label
                writer.writerow([f"{topic} {texts[0]}", *texts[1:], shown])
                if name == "train":
                    labels.append(label)
    return labels


@pytest.mark.parametrize("layout", ["packed", "bucketed"])
@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_the_plain_script(
    name: str, layout: str, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    case = CASES[name]
    if case.recipe.lora_rank:
        pytest.importorskip("peft", reason="needs the extra lora: pip install -e '.[lora]'")
    folder = tiny_models[case.model]
    words = list(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])[4:]
    labels = write_data(tmp_path / "data", case, words)
    if case.config == "csv_intents":
        # Classes are numbered in the order of the answers as the rules leave them.
        order_of_answers = ["hi <name> <number> days", "see <url>", "we take <number> eur"]
        assert sorted(order_of_answers) == order_of_answers
    keys = {
        "dataset_id": str(tmp_path / "data"),
        "model_name": str(folder),
        "dtype": "float32",
        "layout": layout,
        "head_dropout": 0.0,
        "num_epochs": 1,
        "steps_freq": 1,
        "project_dir": str(tmp_path / "runs"),
    } | case.keys
    resolved = load_config(case.config, [as_set(key, value) for key, value in keys.items()])
    result = train(resolved)
    got = [loss for _, loss in losses(result)]
    head = sequence_head(HIDDEN, len(set(labels)), resolved.config).state_dict()
    if resolved.config.head == "pooler_linear":
        head |= checkpoints_pooler(folder)
    adapters = None
    if case.recipe.lora_rank:
        options = LoraOptions(rank=case.recipe.lora_rank, targets=case.recipe.lora_targets)
        adapted = add_adapters(load_encoder(str(folder)).module(), options, case.seed)
        adapters = {key: value.detach() for key, value in adapted.named_parameters() if value.requires_grad}
    texts = plain_loop.read_rows(tmp_path / "data" / "train.csv", case.columns[:-1])
    order = epoch_order(len(labels), case.seed, 0).tolist()
    expected = plain_loop.train(folder, texts, labels, dict(head), order, case.recipe, adapters)
    assert len(got) == len(expected) == STEPS
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=0)
    assert np.ptp(expected) > 1e-3, "losses that never move would prove nothing"
