"""The interface of a task: what to read, what to compute and how to score it.

The loop gets the data, the tokens, the head and the loss from a task, and asks it for metrics and answers. Batches,
their order, the optimizer, checkpoints and devices are the same for all tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import nn

from ..config.schema import TrainConfig
from ..data.tabular import Table
from ..runs.folder import RunFolder
from ..tokens.store import Progress, TokenStore
from ..tokens.tokenizer import TextTokenizer

# Some sequences at a time: their rows in the store, int64 [n], and the head's outputs, [n, ...] on the host.
Outputs = Iterable[tuple[np.ndarray, torch.Tensor]]


class Prediction(Protocol):
    """A task's answer to one input."""

    def asked(self) -> dict[str, str]:
        """The texts of the input, by column name."""
        ...

    def answer(self) -> Mapping[str, str | float | Sequence[str | float]]:
        """The answer, by column name of the output file. The names are the same for every input."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """An evaluation's metrics, and the JSON files (content by id) for the run's folder, by file name."""

    metrics: dict[str, float]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


class Task(ABC):
    """What differs between tasks. A task has no state but the loss of `configured`.

    A data set is what `load` returns. It has a `name`, the splits `train` and `test`, `remarks` for the log, and
    `meaning`, which says as JSON values what the head's outputs stand for. A split has a length, `rows(indices)`,
    `corpus` (all its texts), `content` (what an evaluation depends on, as JSON values) and `example` (one input, a
    text or two).

    Attributes:
        name: The value of the key `task`.
        on_features: Whether the head reads only [CLS], so that features can replace a frozen encoder.
        metrics: Names of the metrics in the order of the tables, "eval/loss" first, and the words that logs use.
        sequence: What logs call a row of a batch.
        cross_entropy: Whether the loss is the cross entropy of the logits, which fused steps of a head compute.
        answer: What an answer is: what has the largest logit, all that is above a threshold, or the logits as numbers.
        own_keys: Keys of the configuration that only this task's evaluations depend on.
    """

    name: ClassVar[str]
    on_features: ClassVar[bool]
    metrics: ClassVar[dict[str, str]]
    sequence: ClassVar[str]
    cross_entropy: ClassVar[bool] = False
    answer: ClassVar[Literal["largest", "above", "number"]] = "largest"
    own_keys: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def load(self, config: TrainConfig) -> Any:
        """Loads the data that the configuration names.

        Raises:
            UserError: The data can't be used.
        """

    @abstractmethod
    def outputs(self, config: TrainConfig, dataset: Any) -> int:
        """The number of the head's outputs.

        Raises:
            UserError: The configuration doesn't fit the data.
        """

    def configured(
        self, config: TrainConfig, dataset: Any, outputs: int, place: Callable[[torch.Tensor], torch.Tensor]
    ) -> Task:
        """The task with the loss that `config` asks for. `place` moves a tensor to the device.

        Raises:
            UserError: The configuration doesn't fit the data.
        """
        del config, dataset, outputs, place
        return self

    def metrics_of(self, dataset: Any) -> tuple[str, ...]:
        """The metrics that this data has: all of `metrics`, or fewer."""
        del dataset
        return tuple(self.metrics)

    @abstractmethod
    def tokenise(
        self, split: Any, tokenizer: TextTokenizer, config: TrainConfig, use_cache: bool, progress: Progress | None
    ) -> TokenStore:
        """The tokens of a split. A row of the store is one sequence of a batch."""

    @abstractmethod
    def head(self, hidden_size: int, outputs: int, config: TrainConfig) -> nn.Module:
        """The head. Its initial weights are drawn on the host from `config.seed`."""

    @abstractmethod
    def apply_head(self, head: nn.Module, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Computes logits from the encoder's last states [B, L, hidden] and the attention mask [B, L].

        Returns:
            [B, outputs], or [B, L, outputs] if the head reads every token.
        """

    @abstractmethod
    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows' summed loss and the number answered correctly (0 if answers are numbers), both on the device.

        Rows with the label IGNORED, or NaN, count in neither.
        """

    def loss_of(self, model: nn.Module) -> Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """What a training step differentiates: `loss` as a function of the model's inputs and their labels."""
        return lambda inputs, labels: self.loss(model(inputs), labels)

    def weigher(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Sums the weights of rows, from their labels on the device, for the mean loss. None: all rows weigh 1."""
        return None

    def evaluation_order(self, store: TokenStore) -> np.ndarray:
        """The rows of the store in the order in which an evaluation reads them, int64 [N]."""
        return np.arange(store.num_texts)

    @abstractmethod
    def kept(self, logits: torch.Tensor) -> torch.Tensor:
        """What an evaluation keeps of a batch's logits, on the device."""

    @abstractmethod
    def judge(self, dataset: Any, store: TokenStore, outputs: Outputs, loss: float, config: TrainConfig) -> Evaluation:
        """Computes the metrics on the test split.

        Args:
            store: The tokens of the split.
            outputs: What `kept` returned.
            loss: The mean loss per row, of the same kind as in training.
        """

    @abstractmethod
    def chance_loss(self, store: TokenStore) -> float | None:
        """The mean loss of a model that knows only how frequent each answer is. None if there is no such figure."""

    def least_loss(self, store: TokenStore) -> float:
        """The smallest mean loss that a model can have."""
        del store
        return 0.0

    @abstractmethod
    def record(self, run: RunFolder, dataset: Any) -> None:
        """Writes what predictions need besides configuration, tokenizer and weights into the run's folder."""

    @abstractmethod
    def recall(self, run: RunFolder) -> Any:
        """Reads what `record` wrote.

        Raises:
            UserError: A file is missing or damaged.
        """

    @abstractmethod
    def output_names(self, recalled: Any, outputs: int) -> list[str]:
        """The names of the head's `outputs` outputs."""

    @abstractmethod
    def meaning(self, recalled: Any) -> list[Any]:
        """What the head's outputs stand for, as in the data set's `meaning`."""

    def settled(self, config: TrainConfig, metrics: Mapping[str, float]) -> TrainConfig:
        """`config` for predictions, completed by what the evaluation of the same weights has found."""
        del metrics
        return config

    @abstractmethod
    def parts(self, file: Path) -> Iterator[Table]:
        """Reads a file of inputs as tables of some rows each."""

    @abstractmethod
    def columns(
        self, table: Table, recalled: Any, text_column: str | None, text_pair_column: str | None
    ) -> tuple[str, str | None]:
        """The columns that prediction reads: the requested one, else the one from training, else one found by name.

        The second is None if inputs are single texts.
        """

    @abstractmethod
    def reads_pairs(self, recalled: Any) -> bool:
        """Whether an input is a pair of texts."""

    @abstractmethod
    def inputs(self, recalled: Any, texts: Sequence[str], pairs: Sequence[str] | None) -> Any:
        """Makes a split of texts to predict for.

        Raises:
            UserError: Second texts are missing, or given where none are expected.
        """

    @abstractmethod
    def answers(
        self, recalled: Any, split: Any, store: TokenStore, outputs: Outputs, config: TrainConfig
    ) -> Sequence[Prediction]:
        """The answers in the order of `split`. `store` holds its tokens, `outputs` the head's outputs."""
