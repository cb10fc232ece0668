"""Options of a job over twenty steps, float32, against `transformers.Trainer` and torch's weighted loss in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from isotrain.albert_core.config.load import as_set, load_config
from isotrain.albert_core.loop.train import train
from isotrain.albert_core.tokens.order import epoch_order
from reference import test_trainer, trainer_loop
from reference.test_trainer import STEPS, first_model, samples_of
from support.small_job import losses
from torch import nn

pytest.importorskip("accelerate", reason="Trainer needs accelerate, of the extra dev")

JOB = test_trainer.CASES["csv_intents"]
WEIGHTS = [0.5, 3.0, 1.0]


class Logits(nn.Module):
    """A model that leaves the loss to Trainer where that takes the labels, as with label smoothing."""

    def __init__(self, model: nn.Module, weights: list[float] | None) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.weights = None if weights is None else torch.tensor(weights)

    def forward(self, labels: torch.Tensor | None = None, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(**inputs).logits
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels, self.weights), "logits": logits}


CASES: dict[str, tuple[dict[str, Any], list[float] | None]] = {
    "smoothing": ({"label_smoothing_factor": 0.2, "gradient_accumulation_steps": 2}, None),
    "weights": ({}, WEIGHTS),
    "min lr": (
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.3}, "warmup_steps": 3},
        None,
    ),
    "stable": (
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 9}, "warmup_steps": 3},
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_are_trainers(name: str, tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    options, weights = CASES[name]
    folder = tiny_models["albert"]
    words = list(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])[4:]
    samples = samples_of(JOB, folder, tmp_path / "data", words)
    keys: dict[str, Any] = {
        "dataset_id": str(tmp_path / "data"),
        "model_name": str(folder),
        "dtype": "float32",
        "head_dropout": 0.0,
        "learning_rate": JOB.rate,
        "layout": "bucketed",
        "batch_size": 8,
        "gradient_accumulation_steps": 1,
        "weight_decay": 0.0,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.0,
        "max_steps": STEPS,
        "num_epochs": 1,
        "steps_freq": 1,
        "save_strategy": "no",
        "chart": [],
        "threads": 1,
        "project_dir": str(tmp_path / "runs"),
    }
    keys |= options | ({} if weights is None else {"class_weights": weights})
    result = train(load_config("csv_intents", [as_set(key, value) for key, value in keys.items()]))
    order = epoch_order(len(samples), JOB.seed, 0).tolist()

    def trainers(options: dict[str, Any], weights: list[float] | None) -> list[float]:
        settings = {"per_device_train_batch_size": 8, "learning_rate": JOB.rate, "max_steps": STEPS} | options
        model = Logits(first_model(JOB, folder, samples, dropout=0.0), weights)
        return trainer_loop.train(folder, tmp_path / "out", model, samples, order, **settings)

    expected = trainers(options, weights)
    np.testing.assert_allclose([loss for _, loss in losses(result)], expected, rtol=1e-6, atol=0)
    without = {key: value for key, value in options.items() if key == "gradient_accumulation_steps"}
    assert np.abs(np.array(expected) / trainers(without, None) - 1).max() > 1e-4, "the option is seen at this size"
