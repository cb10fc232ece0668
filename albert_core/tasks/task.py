"""The interface of a task: what to read, what to compute and how to judge it.

The loop gets the data, the tokens, the head and the loss from a task, and asks it for evaluations and answers. Batches,
their order, the optimizer, checkpoints and devices are the same for all tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from ..config.schema import TrainConfig
from ..data.tabular import Table
from ..runs.folder import RunFolder
from ..tokens.store import Progress, TokenStore
from ..tokens.tokenizer import TextTokenizer

# Of some sequences at a time their rows in the store, int64 [n], and what the head made of them, [n, ...] on the host.
Outputs = Iterable[tuple[np.ndarray, torch.Tensor]]


class Prediction(Protocol):
    """A task's answer to one input."""

    def asked(self) -> dict[str, str]:
        """The input's texts, by what they are called."""
        ...

    def answer(self) -> dict[str, str | int | float]:
        """What is new, by the name of the column that an output file gets for it; the same names for every input."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: figures, and what the run's folder gets of it as JSON by id, by file name."""

    metrics: dict[str, float]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


class Task(ABC):
    """What differs from task to task. A task keeps no state.

    A data set is what `load` returns. It has a `name`, the splits `train` and `test`, and `meaning`: what the head's
    outputs stand for, as JSON takes it. A split has a length, `rows(indices)`, and for whoever needs it `corpus` (every
    text in it), `content` (what an evaluation depends on, as JSON takes it) and `example` (one input, a text or two).

    Attributes:
        name: The value of the key `task`.
        on_features: Whether the head reads [CLS] only, so that features can stand for a frozen encoder.
        metrics: The figures of an evaluation in the order that tables show them, "eval/loss" first, and the words that
            logs use.
        sequence: What logs call a row of a batch.
    """

    name: ClassVar[str]
    on_features: ClassVar[bool]
    metrics: ClassVar[dict[str, str]]
    sequence: ClassVar[str]

    @abstractmethod
    def load(self, config: TrainConfig) -> Any:
        """The data that the configuration names. Raises UserError for data that can't be used."""

    @abstractmethod
    def outputs(self, config: TrainConfig, dataset: Any) -> int:
        """How many outputs the head has. Raises UserError where the configuration doesn't fit the data."""

    def metrics_of(self, dataset: Any) -> tuple[str, ...]:
        """The metrics that this data has: all of `metrics`, or fewer."""
        del dataset
        return tuple(self.metrics)

    @abstractmethod
    def tokenise(
        self, split: Any, tokenizer: TextTokenizer, config: TrainConfig, use_cache: bool, progress: Progress | None
    ) -> TokenStore:
        """The tokens of a split. A row of the store is one sequence of a batch; its labels are int64 [N] or [N, k]."""

    @abstractmethod
    def head(self, hidden_size: int, outputs: int, config: TrainConfig) -> nn.Module:
        """The head, its initial weights drawn on the host from `config.seed`."""

    @abstractmethod
    def apply_head(self, head: nn.Module, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits from the encoder's last states [B, L, hidden] and the attention mask [B, L].

        They are [B, outputs], or [B, L, outputs] where the head reads every token.
        """

    @abstractmethod
    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss of the rows in nats, and how many are classified correctly, both on the device.

        Rows labelled IGNORED count in neither.
        """

    def loss_of(self, model: nn.Module) -> Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """What a training step differentiates: `loss` as a function of the inputs of `model` and their labels."""
        return lambda inputs, labels: self.loss(model(inputs), labels)

    def evaluation_order(self, store: TokenStore) -> np.ndarray:
        """The rows of the store in the order in which an evaluation takes them, int64 [N]."""
        return np.arange(store.num_texts)

    @abstractmethod
    def kept(self, logits: torch.Tensor) -> torch.Tensor:
        """What an evaluation keeps of a batch's logits, on the device."""

    @abstractmethod
    def judge(self, dataset: Any, store: TokenStore, outputs: Outputs, loss: float, config: TrainConfig) -> Evaluation:
        """The metrics on the test split, whose tokens are `store`, from what was kept and the mean loss of a row."""

    @abstractmethod
    def chance_loss(self, store: TokenStore) -> float | None:
        """The mean loss of a model that knows how often each answer is given, and nothing of the texts.

        None where there is no such figure.
        """

    @abstractmethod
    def record(self, run: RunFolder, dataset: Any) -> None:
        """Writes into the run's folder what predictions need beside configuration, tokenizer and weights."""

    @abstractmethod
    def recall(self, run: RunFolder) -> Any:
        """What `record` wrote. Raises UserError for a file that is missing or damaged."""

    @abstractmethod
    def output_names(self, recalled: Any) -> list[str]:
        """What the head's outputs are called."""

    @abstractmethod
    def meaning(self, recalled: Any) -> list[Any]:
        """What the head's outputs stand for, as the data's `meaning` has it."""

    @abstractmethod
    def parts(self, file: Path) -> Iterator[Table]:
        """A file of inputs as tables of some rows each."""

    @abstractmethod
    def columns(
        self, table: Table, recalled: Any, text_column: str | None, text_pair_column: str | None
    ) -> tuple[str, str | None]:
        """The columns that prediction reads: the one asked for, else the one of the training, else one found by name.

        The second is None where inputs are single texts.
        """

    @abstractmethod
    def inputs(self, recalled: Any, texts: Sequence[str], pairs: Sequence[str] | None) -> Any:
        """Texts to predict for as a split. Raises UserError for second texts that are missing or not wanted."""

    @abstractmethod
    def answers(
        self, recalled: Any, split: Any, store: TokenStore, outputs: Outputs, config: TrainConfig
    ) -> Sequence[Prediction]:
        """The answers in the order of the split, whose tokens are `store`."""
