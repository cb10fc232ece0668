"""Evaluation of labels: loss, accuracy and F1 over a whole split, drawing no random number."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ...backends import Backend
from ..features.compute import InputSource
from ..processes.ranks import ALONE, Ranks
from ..tokens.order import IGNORED


def evaluate_labels(
    model: nn.Module,
    source: InputSource,
    num_samples: int,
    batch_size: int,
    backend: Backend,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """``eval/loss`` (mean cross entropy, nats), ``eval/accuracy``, ``eval/f1_macro`` and ``eval/f1`` of `model`.

    Losses and predictions stay on the device until the end. F1 is scikit-learn's: macro-F1 the unweighted mean over
    the labels that occur in the split or among the predictions, ``eval/f1`` that of label 1 alone, as GLUE defines it
    for two labels; 0 where that one is never told. ``eval/largest_share`` is the share of the texts that got the label
    told most often: 1 where one answer is given to all. Rows that only fill a batch up count nowhere. Of several
    processes each evaluates its share, and all get the figures of the whole split.
    """
    from sklearn.metrics import f1_score

    training = model.training
    model.eval()
    source.start_epoch(np.arange(num_samples))
    loss_sum: torch.Tensor = backend.place(torch.zeros(()))
    predictions, truth = [], []
    with torch.no_grad():
        for start in range(0, num_samples, batch_size):
            inputs, labels = source.batch(start, min(start + batch_size, num_samples))
            logits = model(inputs)
            loss_sum = loss_sum + functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
            predictions.append(logits.argmax(dim=-1))
            truth.append(labels)
            backend.step_boundary()
    model.train(training)
    # Joined on the host: for a device that compiles, joining would be one more program.
    predicted, wanted = (np.concatenate([part.cpu().numpy() for part in parts]) for parts in (predictions, truth))
    real = wanted != IGNORED
    shares = ranks.gather((predicted[real], wanted[real]))
    predicted, wanted = (np.concatenate(parts) for parts in zip(*shares, strict=True))
    loss_sum = ranks.total(loss_sum)
    return {
        "eval/loss": float(loss_sum) / num_samples,
        "eval/accuracy": float((predicted == wanted).mean()),
        "eval/f1_macro": float(f1_score(wanted, predicted, average="macro", zero_division=0.0)),
        "eval/largest_share": float(np.bincount(predicted).max() / len(predicted)),
        "eval/f1": float(f1_score(wanted == 1, predicted == 1, zero_division=0.0)),
    }
