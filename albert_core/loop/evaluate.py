"""The forward pass of an evaluation. The task decides what to keep of the logits, and computes the metrics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..features.compute import InputSource
from ..tasks.task import Evaluation
from .job import TextJob


def evaluate(job: TextJob, model: nn.Module, source: InputSource, stopped: Callable[[], bool]) -> Evaluation | None:
    """Computes the metrics of `model` on the evaluation split, which `source` reads. Draws no random numbers.

    What is kept of the logits stays on the device until the end. Several processes evaluate a share of every batch
    each, and all get the figures of the whole split.

    Args:
        stopped: Whether a stop is requested. Every process calls it before every batch.

    Returns:
        None if it was stopped.
    """
    task, store, backend, ranks, size = job.task, job.test_tokens, job.backend, job.ranks, job.config.eval_batch_size
    order = task.evaluation_order(store)
    training = model.training
    model.eval()
    source.start_epoch(order)
    loss_sum: torch.Tensor = backend.place(torch.zeros(()))
    places, parts = [], []
    with torch.no_grad():
        for start in range(0, len(order), size):
            if stopped():
                model.train(training)
                return None
            stop = min(start + size, len(order))
            inputs, labels = source.batch(start, stop)
            logits = model(inputs)
            loss_sum = loss_sum + task.loss(logits, labels)[0]
            parts.append(task.kept(logits))
            places.append(order[slice(*ranks.share(start, stop))])
            backend.step_boundary()
    model.train(training)
    # Cut on the host, since a device that compiles would need another program for it. The other rows are padding.
    found = [(rows, part.cpu()[: len(rows)]) for rows, part in zip(places, parts, strict=True)]
    outputs = [pair for share in ranks.gather(found) for pair in share]
    weigh = task.weigher()
    whole = store.num_texts if weigh is None else float(weigh(backend.place(torch.tensor(store.labels))))
    loss = float(ranks.total(loss_sum)) / whole
    return task.judge(job.dataset, store, outputs, loss, job.config)
