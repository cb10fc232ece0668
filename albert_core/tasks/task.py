"""A task as plain functions: what to read, what to compute and how to judge it. Devices and the loop know none of it.

A task is one module of this folder that ends in a `Task`; `find_task` names it. The loop gets from it the data, the
tokens, the head and the loss, and calls it to evaluate and to predict; batches, order, optimizer, checkpoints and
devices are the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from ... import UserError

if TYPE_CHECKING:
    from ..config.schema import TrainConfig
    from ..data.tabular import Table
    from ..features.compute import InputSource
    from ..inference.predict import Predictor
    from ..loop.job import Job
    from ..runs.folder import RunFolder
    from ..tokens.store import Progress, TokenStore
    from ..tokens.tokenizer import TextTokenizer

# Each is a module of this folder with a `TASK`; it is imported when a configuration names it.
TASK_NAMES = ("classification", "question_answering")


class Split(Protocol):
    """One split's examples. `corpus`: every text in it, for training an embedded tokenizer. `content`: what an
    evaluation depends on, as JSON takes it. `example`: one input, a text or two.
    """

    def __len__(self) -> int: ...

    @property
    def corpus(self) -> list[str]: ...

    @property
    def content(self) -> list[Any]: ...

    @property
    def example(self) -> tuple[str, ...]: ...

    def rows(self, indices: Sequence[int]) -> Split: ...


class TaskData(Protocol):
    """What a task's `load` returns: at least a name and both splits. `meaning`: what the head's outputs stand for, in
    their order, as JSON takes it.
    """

    @property
    def meaning(self) -> list[Any]: ...

    @property
    def name(self) -> str: ...

    @property
    def train(self) -> Split: ...

    @property
    def test(self) -> Split: ...


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


@dataclass(frozen=True)
class Task:
    """The functions that differ from task to task.

    name: the value of the key `task`. on_features: whether its head reads [CLS] alone, so that features stand for a
    frozen encoder. metrics: the figures of an evaluation in the order that tables show them, "eval/loss" first, and the
    words that logs use. sequences: what logs call the rows of a batch.
    """

    name: str
    on_features: bool
    metrics: dict[str, str]
    sequences: str

    # The data that the configuration names. Raises UserError for what can't be used.
    load: Callable[[TrainConfig], Any]
    # How many outputs the head has. Raises UserError where the configuration's num_labels doesn't fit the data.
    outputs: Callable[[TrainConfig, Any], int]
    # The metrics that this data has: all of `metrics`, or fewer (binary F1 needs two labels).
    metrics_of: Callable[[Any], tuple[str, ...]]
    # A split's tokens, given tokenizer, configuration, whether the cache may be used, and who watches. One row of the
    # store is one sequence of a batch, whatever the task calls an example; its labels are int64 [N] or [N, k].
    tokenise: Callable[[Any, TextTokenizer, TrainConfig, bool, Progress | None], TokenStore]
    # The head from (hidden_size, outputs, config), its initial weights from `config.seed` on the host.
    head: Callable[[int, int, TrainConfig], nn.Module]
    # The head's logits, from the encoder's last states [B, L, hidden] and the attention mask [B, L]: [B, outputs], or
    # [B, L, outputs] where it reads every token.
    apply_head: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
    # Of logits and labels, the summed loss in nats and how many rows were classified correctly, both on the device.
    # Rows labelled IGNORED count in neither.
    loss: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    # The metrics of a model on the evaluation split, drawing no random number.
    evaluate: Callable[[nn.Module, InputSource, Job], Evaluation]
    # The mean loss of a model that knows the frequencies of the answers and nothing of the texts; None where there is
    # no such figure.
    chance_loss: Callable[[Job], float | None]
    # Writes into the run's folder what predictions need beside configuration, tokenizer and weights; and reads it.
    record: Callable[[RunFolder, Any], None]
    recall: Callable[[RunFolder], Any]
    # What the head's outputs are called, from what `recall` returned.
    output_names: Callable[[Any], list[str]]
    # A file of inputs as tables, some rows each.
    parts: Callable[[Path], Iterator[Table]]
    # Which columns of a table prediction reads: the first text's, and the second's (None: there is none), from the
    # table, what `recall` returned and the names asked for.
    columns: Callable[[Table, Any, str | None, str | None], tuple[str, str | None]]
    # Answers, in the order of the texts. Second texts are given where the task has them.
    predict: Callable[[Predictor, Sequence[str], Sequence[str] | None], list[Any]]


def find_task(name: str) -> Task:
    """The task called `name`. Raises UserError listing what exists."""
    if name not in TASK_NAMES:
        raise UserError(f"task {name!r} is unknown; allowed are {', '.join(TASK_NAMES)}")
    task: Task = import_module(f".{name}", __package__).TASK
    return task
