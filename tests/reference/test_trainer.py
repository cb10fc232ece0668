"""The packaged recipes' losses over twenty steps, float32, against `transformers.Trainer` on transformers' models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isotrain.albert_core.config.load import as_set, load_config
from isotrain.albert_core.loop.train import train
from isotrain.albert_core.model.head import PoolerHead, SpanHead
from isotrain.albert_core.tokens.order import epoch_order
from reference import plain_loop, plain_questions, test_questions, test_recipes, trainer_loop
from support.small_job import losses
from torch import nn
from transformers import PreTrainedTokenizerFast

pytest.importorskip("accelerate", reason="Trainer needs accelerate, of the extra dev")

STEPS, HIDDEN = 20, 32
# So that tiny models move in twenty steps as far as the published ones do in a thousand.
RATE = 1e-3
# Of a classifier, in the published models and in the recipes.
DROPOUT = 0.1


@dataclass(frozen=True)
class Published:
    """What a published job says beside Trainer's defaults, as TrainingArguments; the loops without Trainer, too.

    `contexts` are the words of a context, where questions are answered. Windows are padded to `padded_to` tokens.
    """

    recipe: str
    arguments: dict[str, Any]
    model: str
    seed: int
    accumulation: int = 1
    decay_all: bool = False
    contexts: tuple[int, int] | None = None
    padded_to: int | None = None
    rate: float = RATE
    keys: dict[str, Any] = field(default_factory=dict)


READING: dict[str, Any] = {
    "recipe": "squad",
    "arguments": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "weight_decay": 0.01},
    "model": "albert",
    "seed": 23,
    "accumulation": 2,
    "keys": {"max_length": 40, "doc_stride": 12},
}
CASES = {
    "subj": Published(
        "subj", {"per_device_train_batch_size": 16, "lr_scheduler_type": "cosine", "warmup_steps": 4}, "albert", 42
    ),
    # The course's loop clips nothing, and torch's AdamW makes all weights decay.
    "mrpc": Published(
        "mrpc", {"per_device_train_batch_size": 8, "weight_decay": 0.01, "max_grad_norm": 0.0}, "bert", 42,
        decay_all=True,
    ),
    "csv_intents": Published(
        "csv_intents",
        {
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 4,
            "weight_decay": 0.01,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 1,
        },
        "albert",
        23,
        accumulation=4,
        # So far that gradients are clipped.
        rate=1e-2,
    ),
    "squad": Published(**READING, contexts=(10, 70), padded_to=40),
}  # fmt: skip


def samples_of(job: Published, folder: Path, data: Path, words: list[str]) -> list[dict[str, Any]]:
    """The data of a job, written to `data`, as token ids, token types and labels."""
    if job.contexts:
        test_questions.write_data(data, words, job.contexts)
        cut = plain_questions.Recipe(RATE, 8, 2, STEPS, STEPS, 40, 12, 0.01, frozen=False, clip=1.0)
        found = plain_questions.windows(folder, data / "train.json", cut)
        return [{"ids": one["ids"], "types": one["types"], "labels": one["answer"]} for one in found]
    case = test_recipes.CASES["csv" if job.recipe == "csv_intents" else job.recipe]
    labels = test_recipes.write_data(data, case, words)
    texts = plain_loop.read_rows(data / "train.csv", case.columns[:-1])
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    encoded = tokenizer(
        *map(list, zip(*texts, strict=True)),
        truncation=True,
        max_length=case.recipe.max_length,
        return_token_type_ids=True,
    )
    rows = zip(encoded["input_ids"], encoded["token_type_ids"], labels, strict=True)
    return [{"ids": ids, "types": types, "labels": label} for ids, types, label in rows]


def first_model(job: Published, folder: Path, samples: list[dict[str, Any]], dropout: float) -> nn.Module:
    """transformers' model of the checkpoint; its new last layer has the weights that ours draws."""
    if job.contexts:
        return trainer_loop.reader(folder, *SpanHead(HIDDEN, 2, job.seed).state_dict().values())
    outputs = 1 + max(sample["labels"] for sample in samples)
    return trainer_loop.classifier(folder, PoolerHead(HIDDEN, outputs, job.seed).output.weight, dropout)


# By task: transformers' name of its loss, and the labels of a row that is drawn.
TASKS: dict[str, Callable[[np.random.Generator], list[float]]] = {
    "multi_label_classification": lambda generator: generator.integers(0, 2, 3).astype(float).tolist(),
    "regression": lambda generator: np.round(generator.uniform(0, 5, 2), 2).tolist(),
}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_losses_of_sets_of_labels_and_of_numbers_are_trainers(
    task: str, frozen: bool, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    folder = tiny_models["bert"]
    words = list(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])[4:]
    generator = np.random.default_rng(0)
    texts = [[" ".join(generator.choice(words, 6)) for _ in range(2)] for _ in range(8 * STEPS)]
    labels = [TASKS[task](generator) for _ in texts]
    columns = [f"label{number}" for number in range(len(labels[0]))]
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        pairs = zip(texts, labels, strict=True)
        rows = [
            {"sentence1": one, "sentence2": two} | dict(zip(columns, row, strict=True)) for (one, two), row in pairs
        ]
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {
        "task": task,
        "dataset_id": str(tmp_path / "data"),
        "label_columns": columns,
        "model_name": str(folder),
        "dtype": "float32",
        "freeze_encoder": frozen,
        "head": "pooler_linear",
        "head_dropout": DROPOUT,
        "learning_rate": 10 * RATE,
        "max_length": 32,
        "layout": "bucketed",
        "no_decay": ["bias", "layer_norm"],
        "weight_decay": 0.01,
        "num_epochs": 1,
        "steps_freq": 1,
        "save_strategy": "no",
        "threads": 1,
        "project_dir": str(tmp_path / "runs"),
    }
    result = train(load_config(None, [as_set(key, value) for key, value in keys.items()]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    encoded = tokenizer(*map(list, zip(*texts, strict=True)), return_token_type_ids=True)
    samples = [
        {"ids": ids, "types": types, "labels": row}
        for ids, types, row in zip(encoded["input_ids"], encoded["token_type_ids"], labels, strict=True)
    ]
    last = PoolerHead(HIDDEN, len(columns), 23).output.weight
    model = trainer_loop.classifier(folder, last, DROPOUT, problem_type=task, frozen=frozen)
    settings = {"learning_rate": 10 * RATE, "weight_decay": 0.01, "max_grad_norm": 0.0, "max_steps": STEPS, "seed": 23}
    settings |= {"per_device_train_batch_size": 8, "lr_scheduler_type": "constant"}
    order = epoch_order(len(samples), 23, 0).tolist()
    expected = trainer_loop.train(folder, tmp_path / "out", model, samples, order, **settings)
    got = [loss for _, loss in losses(result)]
    assert len(got) == len(expected) == STEPS
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=0)
    assert max(expected) / min(expected) > 1.05, "losses that stay as they are would prove nothing"


@pytest.fixture
def sides(request: pytest.FixtureRequest, tmp_path: Path, tiny_models: dict[str, Path]) -> Any:
    """The losses by isotrain, by default those of the packaged recipe, and by Trainer."""
    job = CASES[request.param]
    folder = tiny_models[job.model]
    words = list(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])[4:]
    samples = samples_of(job, folder, tmp_path / "data", words)

    def ours(**otherwise: Any) -> list[float]:
        keys = {
            "dataset_id": str(tmp_path / "data"),
            "model_name": str(folder),
            "dtype": "float32",
            "learning_rate": job.rate,
            "max_steps": STEPS,
            "num_epochs": 1,
            "steps_freq": 1,
            "save_strategy": "no",
            "chart": [],
            "threads": 1,
            "project_dir": str(tmp_path / "runs"),
        } | job.keys | otherwise  # fmt: skip
        sets = [as_set(key, value) for key, value in keys.items()]
        return [loss for _, loss in losses(train(load_config(job.recipe, sets)))]

    def trainers(dropout: float = DROPOUT, **otherwise: Any) -> list[float]:
        settings = {"decay_all": job.decay_all, "learning_rate": job.rate, "max_steps": STEPS, "seed": job.seed}
        model = first_model(job, folder, samples, dropout)
        order = epoch_order(len(samples), job.seed, 0).tolist()
        given = settings | job.arguments | {"padded_to": job.padded_to} | otherwise
        return trainer_loop.train(folder, tmp_path / "out", model, samples, order, **given)

    return job, ours, trainers


Losses = Callable[..., list[float]]


@pytest.mark.parametrize("sides", CASES, indirect=True)
def test_losses_are_trainers(sides: tuple[Published, Losses, Losses]) -> None:
    job, ours, trainers = sides
    got, expected = ours(), trainers()
    assert len(got) == len(expected) == STEPS
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=0)
    # What tells the recipes from their neighbours is seen at this size.
    without_clipping = trainers(max_grad_norm=1.0 if job.recipe == "mrpc" else 0.0)
    assert np.abs(np.array(expected) / without_clipping - 1).max() > 1e-5
    if "weight_decay" in job.arguments:
        with_all_decaying = trainers(decay_all=not job.decay_all)
        assert np.abs(np.array(expected) / with_all_decaying - 1).max() > 2e-6


@pytest.mark.parametrize("sides", ["subj", "mrpc"], indirect=True)
def test_losses_are_trainers_without_dropout_too(sides: tuple[Published, Losses, Losses]) -> None:
    """The packed layout as well: only the head's dropout draws the same numbers in every layout."""
    _, ours, trainers = sides
    expected = trainers(dropout=0.0)
    for layout in ("bucketed", "dynamic", "packed"):
        np.testing.assert_allclose(ours(head_dropout=0.0, layout=layout), expected, rtol=1e-6, atol=0)
    assert np.abs(np.array(expected) / trainers() - 1).max() > 1e-3
