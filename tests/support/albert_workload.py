"""ALBERT's own `full_step`, written as a user's workload: what the generic path costs is measured with it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.albert_core.model.head import ClassificationHead
from isotrain.albert_core.model.whole import WholeModel
from isotrain.albert_core.tasks import TASKS
from isotrain.backends import get_backend
from isotrain.benchmarks.harness.plan import Options
from isotrain.benchmarks.harness.texts import load_texts, make_batches
from torch import nn

ALBERT = Options(model="random:albert-base-v2", dtypes=("float32",))
LAYOUT, ROWS = "bucketed", 8


class FullStep:
    """The same weights, batches and loss as those of the target ``full_step bucketed`` of `ALBERT`."""

    options = ALBERT

    def model(self, seed: int) -> nn.Module:
        encoder, backend = load_encoder(self.options.model, seed), get_backend("cpu")
        hidden = encoder.weights.config.hidden_size
        head = ClassificationHead(hidden, self.options.mlp_hidden_size, self.options.num_labels, seed)
        policy = backend.whole_model_policy(backend.cast_policy(self.options.dtype))
        apply_head = TASKS["classification"].apply_head
        return WholeModel(copy.deepcopy(encoder.module()), head, apply_head, backend, policy)

    def batches(self, seed: int) -> list[tuple[Any, torch.Tensor]]:
        del seed  # Of the options, which are the target's.
        vocabulary = load_encoder(self.options.model, self.options.seed).weights.config.vocab_size
        texts = load_texts(self.options, vocabulary, self.options.batches * ROWS)
        made = make_batches(texts, ROWS, LAYOUT, self.options.max_length, sort=False)
        return [(batch.inputs, torch.from_numpy(texts.labels[batch.rows])) for batch in made]

    def loss(self, model: nn.Module, batch: tuple[Any, torch.Tensor]) -> torch.Tensor:
        inputs, labels = batch
        summed, _ = TASKS["classification"].loss_of(model)(inputs, labels)
        return summed / len(labels)
