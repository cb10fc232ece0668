"""What the tasks on texts and pairs of texts share: data, tokens, a head on the [CLS] feature, files to predict for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ... import UserError
from ...backends.host.processor import memory_bytes
from ..config.schema import TrainConfig
from ..data.columns import choose_text_column, choose_text_columns
from ..data.datasets import RawDataset, RawSplit, load_dataset
from ..data.hub import saved_parts
from ..data.label_kinds import LabelKind
from ..data.local import LABELLED_TEXTS
from ..data.table_files import table_parts
from ..data.tabular import Table
from ..model.head import sequence_head
from ..runs.files import write_json
from ..runs.folder import RunFolder, read_strings
from ..tokens.store import Progress, TokenStore, build_token_store
from ..tokens.tokenizer import TextTokenizer
from .task import Outputs, Task


@dataclass(frozen=True)
class TextPrediction:
    """What a text, or a pair of texts, is asked as."""

    text: str
    text_pair: str | None

    def asked(self) -> dict[str, str]:
        return {"text": self.text} | ({} if self.text_pair is None else {"text_pair": self.text_pair})


@dataclass(frozen=True)
class Recalled:
    """What a run keeps for predictions.

    It holds the labels' names by id, the names of the text columns, and, if labels are texts, the responses by label
    id.
    """

    label_names: list[str]
    text_columns: tuple[str, ...]
    responses: list[str] | None = None

    def name(self, label_id: int) -> str:
        if label_id < len(self.label_names):
            return self.label_names[label_id]
        name = f"unused-{label_id}"
        while name in self.label_names:
            name = f"_{name}"
        return name

    def response(self, label_id: int) -> str | None:
        return None if self.responses is None or label_id >= len(self.responses) else self.responses[label_id]


class TextTask(Task):
    """A task on texts or pairs of texts. `label_names` of its data are the names of the head's outputs."""

    on_features = True
    sequence: ClassVar = "text"

    @abstractmethod
    def label_kind(self, config: TrainConfig) -> LabelKind:
        """How the task reads labels."""

    def load(self, config: TrainConfig) -> RawDataset:
        return load_dataset(
            config.dataset_id,
            text_column=config.text_column,
            text_pair_column=config.text_pair_column,
            label_column=config.label_column,
            label_columns=config.label_columns,
            label_kind=self.label_kind(config),
            label_rules=config.label_rules,
            evaluation_split=config.evaluation_split,
            test_fraction=config.test_fraction,
            seed=config.seed,
            missing_markers=config.missing_markers,
            drop_missing=config.drop_missing,
        )

    def outputs(self, config: TrainConfig, dataset: RawDataset) -> int:
        """The number of names in the data.

        Raises:
            UserError: `num_labels` is another number, or the head is larger than the machine's memory.
        """
        found = len(dataset.label_names)
        if config.num_labels not in (None, found):
            raise UserError(f"num_labels is {config.num_labels}, but {dataset.name} has {found}; drop num_labels")
        check_size(config, found)
        return found

    def tokenise(
        self, split: RawSplit, tokenizer: TextTokenizer, config: TrainConfig, use_cache: bool, progress: Progress | None
    ) -> TokenStore:
        """One row per text, or per pair of texts with token types 0 and 1."""
        return build_token_store(split, tokenizer, config.max_length, use_cache=use_cache, progress=progress)

    def head(self, hidden_size: int, outputs: int, config: TrainConfig) -> nn.Module:
        return sequence_head(hidden_size, outputs, config)

    def apply_head(self, head: nn.Module, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        del mask
        return head(states[:, 0])

    def kept(self, logits: torch.Tensor) -> torch.Tensor:
        """All logits."""
        return logits

    def record(self, run: RunFolder, dataset: RawDataset) -> None:
        """Writes labels.json (the names of the outputs) and inputs.json (the text columns).

        If labels are texts, also writes responses.json with the most frequent original of each, in the same order.
        """
        write_json(run.labels, dataset.label_names)
        if dataset.responses is not None:
            write_json(run.responses, dataset.responses)
        write_json(run.inputs, list(dataset.text_columns))

    def recall(self, run: RunFolder) -> Recalled:
        return Recalled(read_strings(run.labels), tuple(read_strings(run.inputs)))

    def output_names(self, recalled: Recalled, outputs: int) -> list[str]:
        return [recalled.name(label_id) for label_id in range(outputs)]

    def meaning(self, recalled: Recalled) -> list[Any]:
        return [recalled.label_names, recalled.responses]

    def columns(
        self, table: Table, recalled: Recalled, text_column: str | None, text_pair_column: str | None
    ) -> tuple[str, str | None]:
        """The requested columns, else those of the training data if they exist, else columns with the usual names."""
        if not self.reads_pairs(recalled):
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
        return saved_parts(file) if LABELLED_TEXTS.is_saved(file) else table_parts(file)

    def reads_pairs(self, recalled: Recalled) -> bool:
        return len(recalled.text_columns) == 2

    def inputs(self, recalled: Recalled, texts: Sequence[str], pairs: Sequence[str] | None) -> RawSplit:
        if (pairs is not None) != self.reads_pairs(recalled):
            raise UserError(
                "this run was trained on single texts; drop the second ones"
                if pairs is not None
                else "this run was trained on pairs of texts; give each text its second one"
            )
        return RawSplit(list(texts), [0] * len(texts), None if pairs is None else list(pairs))


def pairs_of(split: RawSplit) -> Sequence[str | None]:
    """The second text of each row, or None."""
    return split.pairs or [None] * len(split)


def all_outputs(outputs: Outputs, rows: int) -> np.ndarray:
    """The outputs of all rows in the order of the store, float64 [rows, C]."""
    parts = list(outputs)
    found = np.empty((rows, parts[0][1].shape[-1]))
    for places, part in parts:
        found[places] = part.double().numpy()
    return found


def check_size(config: TrainConfig, labels: int) -> None:
    """Raises UserError if an MLP head with so many outputs is larger than the machine's memory."""
    if config.head != "mlp":
        return
    # Weights and gradients in float32. The host draws the weights whatever the device is.
    width = config.mlp_hidden_size
    needed = 2 * 4 * width * labels
    memory = memory_bytes()
    if needed > memory:
        raise UserError(
            f"a head with mlp_hidden_size {width:,} and {labels:,} labels needs at least {needed / 1e9:,.0f} "
            f"GB, and this machine has {memory / 1e9:,.0f} GB; lower mlp_hidden_size or num_labels"
        )
