"""Classification of texts or pairs of texts: cross entropy of the classes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ... import UserError
from ..config.load import load_config
from ..config.schema import TrainConfig
from ..data.datasets import RawDataset, RawSplit
from ..data.label_kinds import CLASSES, LabelKind
from ..data.tabular import shown
from ..runs.folder import RunFolder, read_strings
from ..tokens.store import TokenStore
from .label_loss import LabelLoss, balanced
from .metrics import label_metrics
from .task import Evaluation, Outputs
from .texts import Recalled, TextPrediction, TextTask, check_size, pairs_of

log = logging.getLogger("isotrain")


@dataclass(frozen=True)
class LabelPrediction(TextPrediction):
    """The most likely label of a text (or pair of texts) and its softmax probability.

    `response` is the label's most frequent original, if labels are whole texts that rules made alike.
    """

    label: str
    label_id: int
    probability: float
    response: str | None

    def answer(self) -> dict[str, str | int | float]:
        response = {} if self.response is None else {"response": self.response}
        return {**response, "label": self.label, "label_id": self.label_id, "probability": self.probability}


class Classification(TextTask):
    """Labels texts or pairs of texts."""

    name = "classification"
    cross_entropy = True
    metrics: ClassVar = {"eval/loss": "loss", "eval/accuracy": "accuracy", "eval/f1_macro": "macro-F1", "eval/f1": "F1"}

    def __init__(self, label_loss: LabelLoss | None = None) -> None:
        self.label_loss = label_loss or LabelLoss()

    def label_kind(self, config: TrainConfig) -> LabelKind:
        del config
        return CLASSES

    def outputs(self, config: TrainConfig, dataset: RawDataset) -> int:
        """`num_labels` if set, else the number of labels in the data.

        Raises:
            UserError: The data has more than `num_labels`, or the head is larger than the machine's memory.
        """
        found = len(dataset.label_names)
        check_size(config, found if config.num_labels is None else config.num_labels)
        if config.num_labels is None:
            return found
        if config.num_labels < found:
            raise UserError(
                f"num_labels is {config.num_labels}, but {dataset.name} has {found}; "
                f"set num_labels: {found}, or drop it"
            )
        if config.num_labels > found:
            log.warning(
                "num_labels is %d, %s has %d labels: the others are never right", config.num_labels, dataset.name, found
            )
        return config.num_labels

    def configured(
        self,
        config: TrainConfig,
        dataset: RawDataset,
        outputs: int,
        place: Callable[[torch.Tensor], torch.Tensor],
    ) -> Classification:
        """With label smoothing and class weights.

        Raises:
            UserError: `class_weights` are not one per label.
        """
        given, names = config.class_weights, dataset.label_names
        if given is None:
            return Classification(LabelLoss(outputs, config.label_smoothing_factor))
        values = balanced(np.asarray(dataset.train.labels), outputs) if given == "balanced" else np.asarray(given)
        if len(values) != outputs:
            raise UserError(
                f"class_weights has {len(values)} numbers, and {dataset.name} has {outputs} labels; give one number "
                f"per label in this order: {shown(names)}; or balanced"
            )
        log.info("class weights: %s", shown(f"{name} {value:.4g}" for name, value in zip(names, values, strict=False)))
        weights = torch.tensor(values, dtype=getattr(torch, config.head_dtype))
        return Classification(LabelLoss(outputs, config.label_smoothing_factor, place(weights)))

    def metrics_of(self, dataset: RawDataset) -> tuple[str, ...]:
        """All metrics for two labels. Otherwise without "eval/f1", the F1 of the second label."""
        return tuple(name for name in self.metrics if name != "eval/f1" or len(dataset.label_names) == 2)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed cross entropy in nats and the number of rows classified correctly."""
        right = (logits.detach().argmax(dim=-1) == labels).sum()
        return self.label_loss.summed(logits, labels), right

    def weigher(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        return None if self.label_loss.weights is None else self.label_loss.weight

    def kept(self, logits: torch.Tensor) -> torch.Tensor:
        """The predicted label of each row."""
        return logits.argmax(dim=-1)

    def judge(
        self, dataset: RawDataset, store: TokenStore, outputs: Outputs, loss: float, config: TrainConfig
    ) -> Evaluation:
        """Loss, accuracy, macro-F1, the share of the most frequent prediction and, of two labels, the second's F1."""
        del config
        predicted = np.empty(store.num_texts, dtype=np.int64)
        for rows, labels in outputs:
            predicted[rows] = labels.numpy()
        found = {"eval/loss": loss, **label_metrics(predicted, store.labels)}
        if "eval/f1" not in self.metrics_of(dataset):
            del found["eval/f1"]
        return Evaluation(found)

    def chance_loss(self, store: TokenStore) -> float:
        """The loss in nats of the best constant answer, which is ln(labels) if all count the same."""
        return self.label_loss.chance(store.labels)

    def least_loss(self, store: TokenStore) -> float:
        return self.label_loss.least(store.labels)

    def recall(self, run: RunFolder) -> Recalled:
        rules = load_config(run.config).config.label_rules
        responses = read_strings(run.responses) if rules else None
        return Recalled(read_strings(run.labels), tuple(read_strings(run.inputs)), responses)

    def answers(
        self, recalled: Recalled, split: RawSplit, store: TokenStore, outputs: Outputs, config: TrainConfig
    ) -> list[LabelPrediction]:
        """The most likely label of each text, or pair of texts."""
        del store, config
        best, ids = np.empty(len(split)), np.empty(len(split), dtype=np.int64)
        # With many labels, the logits of all texts would not fit into memory.
        for rows, logits in outputs:
            best[rows], ids[rows] = (part.numpy() for part in torch.softmax(logits.double(), dim=-1).max(dim=-1))
        return [
            LabelPrediction(text, pair, recalled.name(label_id), label_id, probability, recalled.response(label_id))
            for text, pair, label_id, probability in zip(
                split.texts, pairs_of(split), ids.tolist(), best.tolist(), strict=True
            )
        ]
