"""Labelling texts, or pairs of texts: cross entropy of an MLP head on the [CLS] feature."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from ... import UserError
from ..config.load import load_config
from ..data.columns import choose_text_column, choose_text_columns
from ..data.datasets import RawDataset, RawSplit, load_dataset
from ..data.tabular import Table, table_parts
from ..model.head import ClassificationHead
from ..runs.files import write_json
from ..runs.folder import RunFolder, read_strings
from ..tokens.order import IGNORED
from ..tokens.store import Progress, TokenStore, build_token_store
from ..tokens.tokenizer import TextTokenizer
from .metrics import evaluate_labels
from .task import Evaluation, Task

if TYPE_CHECKING:
    from torch import nn

    from ..config.schema import TrainConfig
    from ..features.compute import InputSource
    from ..inference.predict import Predictor
    from ..loop.job import Job

log = logging.getLogger("isotrain")


@dataclass(frozen=True)
class LabelPrediction:
    """The likeliest label of a text (or pair of texts) and its softmax probability.

    `response`: where labels are whole texts made alike by rules, the label's most frequent original.
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


def load(config: TrainConfig) -> RawDataset:
    """The labelled texts that the configuration names."""
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


def outputs(config: TrainConfig, dataset: RawDataset) -> int:
    """num_labels, or as many as the data has.

    Raises UserError where the data has more than num_labels, and where the head is larger than the machine's memory.
    """
    found = len(dataset.label_names)
    _check_size(config.mlp_hidden_size, found if config.num_labels is None else config.num_labels)
    if config.num_labels is None:
        return found
    if config.num_labels < found:
        raise UserError(
            f"num_labels is {config.num_labels}, but {dataset.name} has {found}; set num_labels: {found}, or drop it"
        )
    if config.num_labels > found:
        log.warning(
            "num_labels is %d, %s has %d labels: the others are never right", config.num_labels, dataset.name, found
        )
    return config.num_labels


def _check_size(mlp_hidden_size: int, labels: int) -> None:
    # In float32, the weights and their gradients. The host draws them, whatever device they go to.
    needed = 2 * 4 * mlp_hidden_size * labels
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(
            f"a head with mlp_hidden_size {mlp_hidden_size:,} and {labels:,} labels needs at least {needed / 1e9:,.0f} "
            f"GB, and this machine has {memory / 1e9:,.0f} GB; lower mlp_hidden_size or num_labels"
        )


def metrics_of(dataset: RawDataset) -> tuple[str, ...]:
    """The F1 of one label, the second of two, is asked of two labels only."""
    return tuple(name for name in TASK.metrics if name != "eval/f1" or len(dataset.label_names) == 2)


def tokenise(
    split: RawSplit, tokenizer: TextTokenizer, config: TrainConfig, use_cache: bool, progress: Progress | None
) -> TokenStore:
    """One row a text, or a pair of texts with token types 0 and 1."""
    return build_token_store(split, tokenizer, config.max_length, use_cache=use_cache, progress=progress)


def head(hidden_size: int, outputs: int, config: TrainConfig) -> ClassificationHead:
    """The MLP on the [CLS] feature."""
    return ClassificationHead(hidden_size, config.mlp_hidden_size, outputs, config.seed)


def apply_head(head: nn.Module, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits [B, outputs] from the [CLS] state of the last states [B, L, hidden]."""
    del mask
    return head(states[:, 0])


def loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed cross entropy of the rows in nats, and how many were classified correctly."""
    right = (logits.detach().argmax(dim=-1) == labels).sum()
    return functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED), right


def evaluate(model: nn.Module, source: InputSource, job: Job) -> Evaluation:
    """Loss, accuracy, macro-F1, the share of the label told most often and, of two labels, the second's F1."""
    found = evaluate_labels(
        model, source, job.test_tokens.num_texts, job.config.eval_batch_size, job.backend, job.ranks
    )
    if "eval/f1" not in metrics_of(job.dataset):
        del found["eval/f1"]
    return Evaluation(found)


def chance_loss(job: Job) -> float:
    """The entropy of the training labels in nats: the loss of their frequencies, ln(labels) where all are as common."""
    counts = np.bincount(job.train_tokens.labels)
    shares = counts[counts > 0] / counts.sum()
    return -math.fsum(share * math.log(share) for share in shares)


@dataclass(frozen=True)
class Recalled:
    """What a run keeps for predictions: the labels' names by id, what the columns of its texts were called, and the
    responses by label id where labels are texts.
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


def output_names(recalled: Recalled) -> list[str]:
    """The labels' names by id."""
    return recalled.label_names


def record(run: RunFolder, dataset: RawDataset) -> None:
    """Writes labels.json, the labels' names in the order of their ids, and inputs.json, the columns of the texts.

    Where labels are texts, responses.json has each one's most frequent original, in the same order.
    """
    write_json(run.labels, dataset.label_names)
    if dataset.responses is not None:
        write_json(run.responses, dataset.responses)
    write_json(run.inputs, list(dataset.text_columns))


def recall(run: RunFolder) -> Recalled:
    """What `record` wrote. Raises UserError for a file that is missing or damaged."""
    rules = load_config(run.config).config.label_rules
    responses = read_strings(run.responses) if rules else None
    return Recalled(read_strings(run.labels), tuple(read_strings(run.inputs)), responses)


def columns(
    table: Table, recalled: Recalled, text_column: str | None, text_pair_column: str | None
) -> tuple[str, str | None]:
    """The columns asked for, else those of the training where the table has them, else those of the usual names."""
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


def predict(predictor: Predictor, texts: Sequence[str], pairs: Sequence[str] | None) -> list[LabelPrediction]:
    """The likeliest label of each text, or pair of texts as the run was trained on them."""
    recalled: Recalled = predictor.recalled
    if (pairs is None) != (len(recalled.text_columns) == 1):
        raise UserError(
            "this run was trained on single texts; drop the second ones"
            if pairs is not None
            else "this run was trained on pairs of texts; give each text its second one"
        )
    split = RawSplit(list(texts), [0] * len(texts), None if pairs is None else list(pairs))
    store = tokenise(split, predictor.tokenizer, predictor.config, False, None)
    best, ids = np.empty(len(texts)), np.empty(len(texts), dtype=np.int64)
    # Of many labels, the logits of all texts would not fit the memory.
    for rows, logits in predictor.outputs(store):
        best[rows], ids[rows] = (part.numpy() for part in torch.softmax(logits.double(), dim=-1).max(dim=-1))
    seconds = [None] * len(texts) if pairs is None else pairs
    return [
        LabelPrediction(text, recalled.name(label_id), label_id, probability, second, recalled.response(label_id))
        for text, second, label_id, probability in zip(texts, seconds, ids.tolist(), best.tolist(), strict=True)
    ]


TASK = Task(
    name="classification",
    on_features=True,
    metrics={"eval/loss": "loss", "eval/accuracy": "accuracy", "eval/f1_macro": "macro-F1", "eval/f1": "F1"},
    sequences="texts",
    load=load,
    outputs=outputs,
    metrics_of=metrics_of,
    tokenise=tokenise,
    head=head,
    apply_head=apply_head,
    loss=loss,
    evaluate=evaluate,
    chance_loss=chance_loss,
    record=record,
    recall=recall,
    output_names=output_names,
    parts=table_parts,
    columns=columns,
    predict=predict,
)
