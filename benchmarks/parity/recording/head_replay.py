"""Trains the head again on the reference's features, which shows the error of head, loss and optimizer themselves.

They compute in the head's dtype, whatever the encoder's dtype is. The rounding of a bfloat16 encoder would hide a wrong
beta or a bias without weight decay; here they show.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .... import UserError
from ....albert_core.config.load import ResolvedConfig
from ....albert_core.features.compute import CachedFeatures
from ....albert_core.loop.build import Training, text_job
from ....albert_core.loop.events import TrainingError
from ....albert_core.loop.job import TextJob, trains_on_features
from ....albert_core.loop.train import train
from ....albert_core.tokens.order import Window, epoch_order
from ..trace import HEAD_SERIES, Trace
from .observe import Steps, probe, without_dropout


def replay_head(resolved: ResolvedConfig, reference: Trace) -> dict[str, np.ndarray]:
    """Trains the head of `resolved` on the reference's features, with the loop and the step of every run.

    A whole model makes its own step, in which the reference's features replace those of its encoder.

    Returns:
        head_loss, head_grad_norm and head_update_norm [n] and head_logits [e, P, C], for the steps for which
        `reference` has features, or fewer if training can't continue.

    Raises:
        UserError: The replay was stopped.
    """
    config = resolved.config
    steps = len(reference.arrays["head_loss"])
    own = {"run_name": "head", "stop_at_step": steps if steps < reference.steps else None}
    observer = _Replay(reference)
    try:
        result = train(replace(resolved, config=config.model_copy(update=own)), observer=observer)
    except TrainingError:
        return observer.arrays()
    if result.step < steps:
        raise UserError(f"the replay of the head was stopped at step {result.step}: there is no trace of it")
    return observer.arrays()


class _Replay:
    """An observer that gives a run the reference's features before its first step."""

    def __init__(self, reference: Trace) -> None:
        self.reference = reference
        self.logits: list[np.ndarray] = []

    def started(self, training: Training) -> None:
        job = text_job(training)
        without_dropout(training.model)
        features = self.reference.arrays["features"]
        epochs = -(-len(features) // job.train_tokens.num_texts)
        order = np.concatenate(
            [epoch_order(job.train_tokens.num_texts, job.config.seed, epoch) for epoch in range(epochs)]
        )
        labels = job.train_tokens.labels[order[: len(features)]]
        training.source = _InOrder(_cached(job, features, labels, job.config.batch_size))
        # Only the features of the probe texts are known, and only their logits are judged.
        known = self.reference.arrays["probe_features"][0]
        all_texts = np.zeros((job.test_tokens.num_texts, known.shape[1]), dtype=known.dtype)
        self.probes = _cached(job, all_texts, job.test_tokens.labels, job.config.eval_batch_size)
        training.test_source = self.probes
        head: Any = training.model
        if not trains_on_features(job.config):
            whole, head = head, head.head
            whole.forward = lambda given: job.task.apply_head(head, given.unsqueeze(1), torch.ones_like(given[:, :1]))
        self.steps = Steps(training, list(head.parameters()))
        self._probe(training)
        job.backend.step_boundary()

    def stepped(self, training: Training, window: Window, sums: torch.Tensor) -> None:
        self.steps.add(training, window, sums)

    def evaluated(self, training: Training, epoch: int) -> None:
        del epoch
        self._probe(training)

    def _probe(self, training: Training) -> None:
        known = self.reference.arrays["probe_features"]
        rows = torch.from_numpy(known[min(len(self.logits), len(known) - 1)])
        self.probes.features[: len(rows)] = training.job.backend.place(rows)
        self.logits.append(probe(training)[1])

    def arrays(self) -> dict[str, np.ndarray]:
        found = self.steps.arrays()
        return {f"head_{name}": found[name] for name in HEAD_SERIES} | {"head_logits": np.stack(self.logits)}


class _InOrder:
    """Features in the order in which the steps read them, over all epochs."""

    def __init__(self, features: CachedFeatures) -> None:
        self.features = features
        self.taken = 0

    def start_epoch(self, order: np.ndarray) -> None:
        self.features.start_epoch(np.arange(self.taken, self.taken + len(order)))
        self.taken += len(order)

    def batch(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.features.batch(start, stop)


def _cached(job: TextJob, features: np.ndarray, labels: np.ndarray, rows: int) -> CachedFeatures:
    placed = job.backend.place(torch.from_numpy(features.copy()))
    return CachedFeatures(placed, torch.from_numpy(labels.copy()), job.backend, rows, job.ranks)
