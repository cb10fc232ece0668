"""Evaluation: loss, accuracy and macro-F1 over a whole split, drawing no random number."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..backends import Backend
from .features import InputSource


def evaluate(
    model: nn.Module, source: InputSource, num_samples: int, batch_size: int, backend: Backend
) -> dict[str, float]:
    """``eval/loss`` (mean cross entropy, nats), ``eval/accuracy`` and ``eval/f1_macro`` of `model`.

    Losses and predictions stay on the device until the end. Macro-F1 is scikit-learn's: the unweighted mean over
    the labels that occur in the split or among the predictions.
    """
    from sklearn.metrics import f1_score

    training = model.training
    model.eval()
    source.start_epoch(np.arange(num_samples))
    loss_sum: torch.Tensor | None = None
    predictions, truth = [], []
    with torch.no_grad():
        for start in range(0, num_samples, batch_size):
            inputs, labels = source.batch(start, min(start + batch_size, num_samples))
            logits = model(inputs)
            loss = functional.cross_entropy(logits, labels, reduction="sum").detach()
            loss_sum = loss if loss_sum is None else loss_sum + loss
            predictions.append(logits.argmax(dim=-1))
            truth.append(labels)
            backend.step_boundary()
    model.train(training)
    assert loss_sum is not None, "a split holds at least one text"
    predicted, wanted = torch.cat(predictions).cpu().numpy(), torch.cat(truth).cpu().numpy()
    return {
        "eval/loss": float(loss_sum) / num_samples,
        "eval/accuracy": float((predicted == wanted).mean()),
        "eval/f1_macro": float(f1_score(wanted, predicted, average="macro", zero_division=0.0)),
    }
