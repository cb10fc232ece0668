"""A small training run for parity: a tiny ALBERT whose biases and norms are not trivial, two ragged epochs' windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from isotrain.albert_core.config.load import as_set, load_config
from isotrain.albert_core.loop.job import open_job
from isotrain.albert_core.model.names import RANDOM_ARCHITECTURES
from isotrain.benchmarks.parity.recording.record import record
from isotrain.benchmarks.parity.run import draw_settings
from isotrain.benchmarks.parity.trace import Trace

# 100 texts in windows of 16: the last window of an epoch has one micro-batch of 4.
SETTINGS: dict[str, Any] = {
    "dataset_id": "embedded:intents?train=100&test=77",
    "max_length": 32,
    "batch_size": 8,
    "gradient_accumulation_steps": 2,
    "num_epochs": 4,
    "learning_rate": 5e-3,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0,
    "warmup_steps": 4,
    "weight_decay": 0.01,
    "mlp_hidden_size": 32,
    "eval_batch_size": 77,
    "log_level": "ERROR",
    "threads": 1,
}
FLOAT32 = {"dtype": "float32"}
BFLOAT16 = {"dtype": "bfloat16"}
FLOAT64 = {"dtype": "float64"}
# Of a workload of 12 batches.
OF_MODULE: dict[str, Any] = {
    "gradient_accumulation_steps": 2,
    "num_epochs": 2,
    "learning_rate": 5e-3,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0,
    "warmup_steps": 4,
    "weight_decay": 0.1,
    "log_level": "ERROR",
    "threads": 1,
}


def write_model(folder: Path, seed: int = 0) -> dict[str, str]:
    """A tiny ALBERT with random biases and norms, and its tokenizer: the settings that name them."""
    from transformers import AlbertConfig, AlbertModel

    torch.manual_seed(seed)
    model = AlbertModel(AlbertConfig(**RANDOM_ARCHITECTURES["tiny"]), add_pooling_layer=False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            centre = 1.0 if "orm.weight" in name or "norm.weight" in name else 0.0
            parameter.data = centre + 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder / "model")
    job = open_job(load_config(None, sets_of(SETTINGS | {"model_name": "random:tiny"})).config)
    job.tokenizer.save(folder / "tokenizer")
    return {"model_name": str(folder / "model"), "tokenizer_name": str(folder / "tokenizer")}


def sets_of(settings: dict[str, Any]) -> list[str]:
    return [as_set(key, value) for key, value in settings.items()]


class ParityJob:
    """The run with a model: its float64 trace, and candidates judged by error budgets that are recorded once."""

    def __init__(self, model: dict[str, str], **overrides: Any) -> None:
        """`model` has the keys that name a model, or a workload. A key that is overridden by None isn't set."""
        settings = (OF_MODULE if "workload" in model else SETTINGS) | model | overrides
        self.settings = {key: value for key, value in settings.items() if value is not None}
        self._error_budgets: dict[str, list[Trace]] = {}
        self.reference = self.record("cpu:float64", **FLOAT64)

    def record(self, label: str, **overrides: Any) -> Trace:
        reference = getattr(self, "reference", None)
        # The settings are the configuration: no file is needed.
        return record(None, label, sets_of(self.settings | overrides), replay_from=reference)

    def error_budgets(self, candidate: Trace) -> list[Trace]:
        promised = candidate.header.error_budget
        if promised.label not in self._error_budgets:
            self._error_budgets[promised.label] = [
                self.record(promised.label, **dict(item.split("=", 1) for item in sets))
                for sets in draw_settings(promised.budget)
            ]
        return self._error_budgets[promised.label]
