"""Numbers for texts or pairs of texts, one or several each: the mean squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from ..config.schema import TrainConfig
from ..data.datasets import RawDataset, RawSplit
from ..data.label_kinds import NUMBERS, LabelKind
from ..tokens.store import TokenStore
from .metrics import number_metrics
from .task import Evaluation, Outputs
from .texts import Recalled, TextPrediction, TextTask, all_outputs, pairs_of


@dataclass(frozen=True)
class NumbersPrediction(TextPrediction):
    """The numbers for a text (or pair of texts), by the names of their columns."""

    numbers: dict[str, float]

    def answer(self) -> dict[str, float]:
        return self.numbers


class Regression(TextTask):
    """Gives texts or pairs of texts numbers, such as a score."""

    name = "regression"
    metrics: ClassVar = {
        "eval/loss": "loss",
        "eval/pearsonr": "Pearson",
        "eval/spearmanr": "Spearman",
        "eval/rmse": "RMSE",
    }
    answer = "number"

    def label_kind(self, config: TrainConfig) -> LabelKind:
        del config
        return NUMBERS

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows' summed squared error, each as the mean over its numbers, and 0."""
        # Before the difference, whose gradient would be NaN.
        targets = torch.where(labels.isfinite(), labels.to(logits.dtype), logits.detach())
        loss = functional.mse_loss(logits, targets, reduction="sum") / labels.shape[-1]
        return loss, torch.zeros_like(loss.detach())

    def judge(
        self, dataset: RawDataset, store: TokenStore, outputs: Outputs, loss: float, config: TrainConfig
    ) -> Evaluation:
        """Loss, root mean square error, and Pearson's and Spearman's correlation."""
        del dataset, config
        return Evaluation({"eval/loss": loss, **number_metrics(all_outputs(outputs, store.num_texts), store.labels)})

    def chance_loss(self, store: TokenStore) -> float | None:
        """The variance of the targets, which is the loss of a model that always gives their mean. None if it is 0."""
        return float(store.labels.var(axis=0, dtype=np.float64).mean()) or None

    def answers(
        self, recalled: Recalled, split: RawSplit, store: TokenStore, outputs: Outputs, config: TrainConfig
    ) -> list[NumbersPrediction]:
        """The numbers for each text, or pair of texts."""
        del store, config
        return [
            NumbersPrediction(text, pair, dict(zip(recalled.label_names, row, strict=True)))
            for text, pair, row in zip(
                split.texts, pairs_of(split), all_outputs(outputs, len(split)).tolist(), strict=True
            )
        ]
