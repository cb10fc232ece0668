"""Labels of texts or pairs of texts, any number each: binary cross entropy of every label."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from ..config.schema import TrainConfig
from ..data.datasets import RawDataset, RawSplit
from ..data.label_kinds import LabelKind, class_sets
from ..tokens.store import TokenStore
from .metrics import label_set_metrics
from .task import Evaluation, Outputs
from .texts import Recalled, TextPrediction, TextTask, all_outputs, pairs_of


@dataclass(frozen=True)
class LabelsPrediction(TextPrediction):
    """The labels of a text (or pair of texts) with a probability above `label_threshold`, the most likely first."""

    labels: list[str]
    probabilities: list[float]

    def answer(self) -> dict[str, list[str] | list[float]]:
        return {"labels": self.labels, "probabilities": self.probabilities}


class MultiLabel(TextTask):
    """Gives texts or pairs of texts any number of labels."""

    name = "multi_label_classification"
    metrics: ClassVar = {
        "eval/loss": "loss",
        "eval/f1_micro": "micro-F1",
        "eval/f1_macro": "macro-F1",
        "eval/accuracy": "subset accuracy",
    }
    answer = "above"
    own_keys = ("label_threshold",)

    def label_kind(self, config: TrainConfig) -> LabelKind:
        return class_sets(config.label_separator, by_column=bool(config.label_columns))

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows' summed loss, in nats, and how many rows have exactly the labels with a probability above one half.

        A row's loss is the mean over the labels, as in torch's BCEWithLogitsLoss.
        """
        known = labels.isfinite()
        targets = labels.nan_to_num().to(logits.dtype)
        right = ((logits.detach() > 0) == (targets > 0)).logical_and(known).all(dim=-1).sum()
        loss = functional.binary_cross_entropy_with_logits(logits, targets, known.to(logits.dtype), reduction="sum")
        return loss / labels.shape[-1], right

    def judge(
        self, dataset: RawDataset, store: TokenStore, outputs: Outputs, loss: float, config: TrainConfig
    ) -> Evaluation:
        """Loss, micro-F1, macro-F1, and the share of rows with exactly the right labels."""
        del dataset
        predicted = all_outputs(outputs, store.num_texts) > boundary(config)
        return Evaluation({"eval/loss": loss, **label_set_metrics(predicted, store.labels > 0)})

    def chance_loss(self, store: TokenStore) -> float | None:
        """The entropy of the labels in nats, as the mean over the labels. None if it is 0."""
        shares = store.labels.mean(axis=0, dtype=np.float64)
        parts = [share for one in shares.tolist() for share in (one, 1.0 - one) if share > 0]
        return -math.fsum(share * math.log(share) for share in parts) / len(shares) or None

    def answers(
        self, recalled: Recalled, split: RawSplit, store: TokenStore, outputs: Outputs, config: TrainConfig
    ) -> list[LabelsPrediction]:
        """All labels above the threshold for each text, or pair of texts."""
        del store
        found = []
        logits = all_outputs(outputs, len(split))
        probabilities = torch.from_numpy(logits).sigmoid().numpy()
        limit = boundary(config)
        for text, pair, row, likely in zip(split.texts, pairs_of(split), logits, probabilities, strict=True):
            chosen = [label for label in np.argsort(-row, kind="stable").tolist() if row[label] > limit]
            names = [recalled.name(label) for label in chosen]
            found.append(LabelsPrediction(text, pair, names, likely[chosen].tolist()))
        return found


def boundary(config: TrainConfig) -> float:
    """The logit of `label_threshold`."""
    return math.log(config.label_threshold) - math.log1p(-config.label_threshold)
