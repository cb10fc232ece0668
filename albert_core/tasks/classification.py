"""Classification of texts or pairs of texts: cross entropy of an MLP head on the [CLS] feature."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ... import UserError
from ...backends.host.processor import memory_bytes
from ..config.load import load_config
from ..config.schema import TrainConfig
from ..data.columns import choose_text_column, choose_text_columns
from ..data.datasets import RawDataset, RawSplit, load_dataset
from ..data.table_files import table_parts
from ..data.tabular import Table, shown
from ..model.head import ClassificationHead
from ..runs.files import write_json
from ..runs.folder import RunFolder, read_strings
from ..tokens.store import Progress, TokenStore, build_token_store
from ..tokens.tokenizer import TextTokenizer
from .label_loss import LabelLoss, balanced
from .metrics import label_metrics
from .task import Evaluation, Outputs, Task

log = logging.getLogger("isotrain")


@dataclass(frozen=True)
class LabelPrediction:
    """The most likely label of a text (or pair of texts) and its softmax probability.

    `response` is the label's most frequent original, if labels are whole texts that rules made alike.
    """

    text: str
    label: str
    label_id: int
    probability: float
    text_pair: str | None = None
    response: str | None = None

    def asked(self) -> dict[str, str]:
        return {"text": self.text} | ({} if self.text_pair is None else {"text_pair": self.text_pair})

    def answer(self) -> dict[str, str | int | float]:
        response = {} if self.response is None else {"response": self.response}
        return {**response, "label": self.label, "label_id": self.label_id, "probability": self.probability}


@dataclass(frozen=True)
class Recalled:
    """What a run keeps for predictions.

    It holds the labels' names by id, the names of the text columns, and, if labels are texts, the responses by label
    id.
    """

    label_names: list[str]
    text_columns: tuple[str, ...]
    responses: list[str] | None

    def name(self, label_id: int) -> str:
        if label_id < len(self.label_names):
            return self.label_names[label_id]
        name = f"unused-{label_id}"
        while name in self.label_names:
            name = f"_{name}"
        return name

    def response(self, label_id: int) -> str | None:
        return None if self.responses is None or label_id >= len(self.responses) else self.responses[label_id]


class Classification(Task):
    """Labels texts or pairs of texts."""

    name = "classification"
    on_features = True
    metrics: ClassVar = {"eval/loss": "loss", "eval/accuracy": "accuracy", "eval/f1_macro": "macro-F1", "eval/f1": "F1"}
    sequence = "text"

    def __init__(self, label_loss: LabelLoss | None = None) -> None:
        self.label_loss = label_loss or LabelLoss()

    def load(self, config: TrainConfig) -> RawDataset:
        return load_dataset(
            config.dataset_id,
            text_column=config.text_column,
            text_pair_column=config.text_pair_column,
            label_column=config.label_column,
            label_rules=config.label_rules,
            evaluation_split=config.evaluation_split,
            test_fraction=config.test_fraction,
            seed=config.seed,
            missing_markers=config.missing_markers,
            drop_missing=config.drop_missing,
        )

    def outputs(self, config: TrainConfig, dataset: RawDataset) -> int:
        """`num_labels` if set, else the number of labels in the data.

        Raises:
            UserError: The data has more than `num_labels`, or the head is larger than the machine's memory.
        """
        found = len(dataset.label_names)
        _check_size(config.mlp_hidden_size, found if config.num_labels is None else config.num_labels)
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

    def tokenise(
        self, split: RawSplit, tokenizer: TextTokenizer, config: TrainConfig, use_cache: bool, progress: Progress | None
    ) -> TokenStore:
        """One row per text, or per pair of texts with token types 0 and 1."""
        return build_token_store(split, tokenizer, config.max_length, use_cache=use_cache, progress=progress)

    def head(self, hidden_size: int, outputs: int, config: TrainConfig) -> ClassificationHead:
        return ClassificationHead(hidden_size, config.mlp_hidden_size, outputs, config.seed)

    def apply_head(self, head: nn.Module, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        del mask
        return head(states[:, 0])

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

    def record(self, run: RunFolder, dataset: RawDataset) -> None:
        """Writes labels.json (the labels' names by id) and inputs.json (the text columns).

        If labels are texts, also writes responses.json with the most frequent original of each, in the same order.
        """
        write_json(run.labels, dataset.label_names)
        if dataset.responses is not None:
            write_json(run.responses, dataset.responses)
        write_json(run.inputs, list(dataset.text_columns))

    def recall(self, run: RunFolder) -> Recalled:
        rules = load_config(run.config).config.label_rules
        responses = read_strings(run.responses) if rules else None
        return Recalled(read_strings(run.labels), tuple(read_strings(run.inputs)), responses)

    def output_names(self, recalled: Recalled) -> list[str]:
        return recalled.label_names

    def meaning(self, recalled: Recalled) -> list[Any]:
        return [recalled.label_names, recalled.responses]

    def columns(
        self, table: Table, recalled: Recalled, text_column: str | None, text_pair_column: str | None
    ) -> tuple[str, str | None]:
        """The requested columns, else those of the training data if they exist, else columns with the usual names."""
        if len(recalled.text_columns) == 1:
            if text_pair_column is not None:
                raise UserError("this run was trained on single texts; drop --pair-column")
            known = text_column or next((name for name in recalled.text_columns if name in table.columns), None)
            return choose_text_column(table.origin, table.columns, known), None
        known, known_pair = (
            asked or (trained if trained in table.columns else None)
            for asked, trained in zip((text_column, text_pair_column), recalled.text_columns, strict=True)
        )
        first, second = choose_text_columns(table.origin, table.columns, known, known_pair)
        if second is None:
            raise UserError(
                f"{table.origin} has no column of second texts, and this run was trained on pairs "
                f"({' and '.join(recalled.text_columns)}); name it by --pair-column"
            )
        return first, second

    def parts(self, file: Path) -> Iterator[Table]:
        return table_parts(file)

    def inputs(self, recalled: Recalled, texts: Sequence[str], pairs: Sequence[str] | None) -> RawSplit:
        if (pairs is None) != (len(recalled.text_columns) == 1):
            raise UserError(
                "this run was trained on single texts; drop the second ones"
                if pairs is not None
                else "this run was trained on pairs of texts; give each text its second one"
            )
        return RawSplit(list(texts), [0] * len(texts), None if pairs is None else list(pairs))

    def answers(
        self, recalled: Recalled, split: RawSplit, store: TokenStore, outputs: Outputs, config: TrainConfig
    ) -> list[LabelPrediction]:
        """The most likely label of each text, or pair of texts."""
        del store, config
        best, ids = np.empty(len(split)), np.empty(len(split), dtype=np.int64)
        # With many labels, the logits of all texts would not fit into memory.
        for rows, logits in outputs:
            best[rows], ids[rows] = (part.numpy() for part in torch.softmax(logits.double(), dim=-1).max(dim=-1))
        pairs: Sequence[str | None] = split.pairs or [None] * len(split)
        return [
            LabelPrediction(text, recalled.name(label_id), label_id, probability, pair, recalled.response(label_id))
            for text, pair, label_id, probability in zip(split.texts, pairs, ids.tolist(), best.tolist(), strict=True)
        ]


def _check_size(mlp_hidden_size: int, labels: int) -> None:
    # Weights and gradients in float32. The host draws the weights whatever the device is.
    needed = 2 * 4 * mlp_hidden_size * labels
    memory = memory_bytes()
    if needed > memory:
        raise UserError(
            f"a head with mlp_hidden_size {mlp_hidden_size:,} and {labels:,} labels needs at least {needed / 1e9:,.0f} "
            f"GB, and this machine has {memory / 1e9:,.0f} GB; lower mlp_hidden_size or num_labels"
        )
