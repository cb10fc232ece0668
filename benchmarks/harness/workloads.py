"""The workloads that `isotrain bench` measures.

All except the head step start from token ids on the host, so that a step includes the copy to the device. Tokenising is
not included.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ... import __version__
from ...albert_core.config.schema import TrainConfig
from ...albert_core.features.compute import CachedFeatures
from ...albert_core.loop.optim import build_optimizer
from ...albert_core.loop.step import step_function
from ...albert_core.model.head import ClassificationHead
from ...albert_core.model.whole import WholeModel
from ...albert_core.tasks import TASKS
from ...backends import Backend, CastPolicy
from .document import Data, KernelUsed, Model, Work
from .statistics import relative_distance
from .texts import BenchBatch, Texts, cost_classes

# Logits [labels] by the number of their text.
Logits = Mapping[int, np.ndarray]
CHANGED = "the results changed after they were handed over: the fence returned before they were computed"
# How many of the first losses it hands back, for the comparison of two results.
FIRST_LOSSES = 5


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder with trained layers.

    Attributes:
        module: The transformers module.
        name: The kernel of packed batches, as `WholeModel` takes it.
        version: transformers' version.
        torch_compile: The mode of torch.compile, if any.
    """

    module: nn.Module
    policy: CastPolicy
    name: str
    version: str
    torch_compile: str | None = None
    skips_padding: bool = False


class Steps(ABC):
    """A target of `measure.measure`: steps on a list of batches, with results that stay on the device until `read`.

    Attributes:
        classes: One entry a batch; batches with equal entries cost the same.
        probe: The answers to each judged input, by its number: logits of a text, loss and outputs of a batch.
        first_losses: Those of the first training steps.
    """

    def __init__(self, backend: Backend, classes: Sequence[int]) -> None:
        self.backend, self.classes = backend, classes
        self.probe: dict[int, list[float]] = {}
        self.first_losses: list[float] = []
        self._read: int | None = None
        self._results: list[torch.Tensor] = []
        self._ran: list[int] = []
        self._begun = 0

    def context(self) -> AbstractContextManager[Any]:
        """A context for the whole measurement, as training has around its loop."""
        return nullcontext()

    def begin(self) -> None:
        self._results, self._ran, self._read = [], [], None
        self._begun += 1

    def step(self, index: int) -> None:
        self._results.append(self.run(index))
        self._ran.append(index)
        self.backend.step_boundary()

    def compile_count(self) -> int:
        return self.backend.compile_count()

    @abstractmethod
    def run(self, index: int) -> torch.Tensor:
        """Makes one step on batch `index` and returns what `read` looks at."""

    @abstractmethod
    def fence(self) -> None: ...

    @abstractmethod
    def read(self) -> list[str]: ...

    def changed(self, *values: np.ndarray) -> list[str]:
        """Whether the results since `begin` are others than at the reading before."""
        before, self._read = self._read, 0
        for array in values:
            self._read = zlib.crc32(np.ascontiguousarray(array).data, self._read)
        return [CHANGED] if before not in (None, self._read) else []

    @abstractmethod
    def problems(self) -> list[str]:
        """What is wrong with the workload as a whole, after the last block."""


@dataclass(frozen=True)
class Prepared:
    """A target that is ready to be measured, and what its result says about it.

    Attributes:
        expected: The answers that its own are judged by, by the number of the input.
        accounts: What ran, and the mean work of a step. Called after the measurement.
    """

    backend: Backend
    policy: CastPolicy
    steps: Steps
    expected: Mapping[int, Sequence[float]]
    accounts: Callable[[], tuple[KernelUsed, Work]]
    model: Model
    data: Data
    warnings: Sequence[str] = ()


class Workload(Steps):
    """Steps of an encoder and a head on batches of texts.

    Attributes:
        encoder: A FrozenEncoder, or a TrainedEncoder if the whole model is trained.
        probe: Of all logits of a text that were read, those that are farthest from the expected ones.
    """

    name: str

    def __init__(
        self, backend: Backend, encoder: Any, head: ClassificationHead, batches: Sequence[BenchBatch], texts: Texts
    ) -> None:
        super().__init__(backend, cost_classes(batches))
        self.encoder, self.batches, self.texts = encoder, batches, texts
        self.head = backend.place(head)
        self.expected: Logits = {}
        self._distances: dict[int, float] = {}
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Builds what the workload needs beside a forward pass."""

    def kernel(self) -> tuple[str, str]:
        """Name and version of the kernel that did the work."""
        return self.encoder.name, str(self.encoder.version)

    def features(self, index: int) -> torch.Tensor:
        """The features of batch `index`."""
        with self.backend.named_range("copy"):
            inputs = self.backend.place(self.batches[index].inputs)
        with self.backend.named_range("encoder"):
            return self.encoder(inputs)

    def judge(self, expected: Logits) -> None:
        """Compares with these logits of a few texts from now on. Called before the first step."""
        self.expected = expected

    def keep(self, index: int, logits: np.ndarray) -> None:
        """Takes the logits [rows, labels] of batch `index` into the `probe`. Rows beyond the batch's are fillers."""
        for text, found in zip(self.batches[index].rows.tolist(), logits, strict=False):
            if text in self.expected:
                distance = relative_distance(self.expected[text].tolist(), found.tolist())
                if distance >= self._distances.get(text, 0.0):
                    self._distances[text], self.probe[text] = distance, found.tolist()


class Forward(Workload):
    """Frozen encoder and head, from host token ids to logits."""

    name = "forward"

    def prepare(self) -> None:
        self.logits = self.backend.compile(self.head)

    @torch.no_grad()
    def run(self, index: int) -> torch.Tensor:
        features = self.features(index)
        # As in training. Otherwise a product of microseconds waits for the host's other threads.
        with self.backend.single_threaded(), self.backend.named_range("head"):
            return self.logits(features)

    def fence(self) -> None:
        # All logits, since a lazy device never computes those that nobody reads.
        self.backend.synchronize(*self._results)

    def read(self) -> list[str]:
        if not self._results:
            return []
        found = [result.cpu().float().numpy() for result in self._results]
        # The last of each batch: the steps around it are under way while it is computed.
        for index, logits in dict(zip(self._ran, found, strict=True)).items():
            self.keep(index, logits)
        # Joined on the host, since a compiling device would need one more program.
        values = np.concatenate(found)
        bad = int((~np.isfinite(values)).sum())
        problems = [f"{bad} logits of {values.size} were NaN or infinite"] if bad else []
        return problems + self.changed(values)

    def problems(self) -> list[str]:
        if any(max(logits) == min(logits) for logits in self.probe.values()):
            return ["all logits of a text were equal: the head did no work"]
        return []


class Trained(Steps):
    """Optimizer steps of `model`: each result contains a loss, and the updated weights are what a fence waits for."""

    model: nn.Module

    def watch(self, model: nn.Module) -> None:
        """Prepares the checks of what training does to `model`. Called before the first step."""
        self.model = model
        self._initial = self._weights()
        self._losses: dict[int, dict[tuple[int, int], float]] = {}

    @abstractmethod
    def losses(self, results: torch.Tensor) -> list[float]:
        """The mean loss of each step since `begin`, from its results on the host."""

    def fence(self) -> None:
        # Rule 2. Reading a loss would force neither the gradients nor the update after it.
        self.backend.synchronize(*self.model.parameters())

    def read(self) -> list[str]:
        if not self._results:
            return []
        results = torch.stack([result.cpu() for result in self._results])
        losses = self.losses(results)
        if self._read is None:
            self.first_losses = (self.first_losses + losses)[:FIRST_LOSSES]
        for position, (index, loss) in enumerate(zip(self._ran, losses, strict=True)):
            # By pass and position, so that reading the same results twice doesn't look like two equal losses.
            self._losses.setdefault(index, {})[self._begun, position] = loss
        bad = sum(not math.isfinite(loss) for loss in losses)
        found = [f"{bad} losses of {len(losses)} were NaN or infinite"] if bad else []
        weights = self._weights()
        if not bool(torch.isfinite(weights).all()):
            found.append("the trained weights became NaN or infinite")
        return found + self.changed(results.numpy(), weights.numpy())

    def problems(self) -> list[str]:
        if torch.equal(self._weights(), self._initial):
            return ["the trained weights never changed: the training steps did nothing"]
        repeated = [losses for losses in self._losses.values() if len(losses) > 1]
        if repeated and all(len(set(losses.values())) == 1 for losses in repeated):
            return ["the loss of a batch never changed from one pass to the next"]
        return []

    def _weights(self) -> torch.Tensor:
        """The trained weights, flat, on the host."""
        return torch.cat([parameter.detach().cpu().flatten() for parameter in self.model.parameters()])


class _Training(Workload, Trained):
    """Optimizer steps of `model`, made by the same function as in training."""

    def train(self, model: nn.Module, **settings: Any) -> None:
        """Prepares training of `model` with `settings` and otherwise the default configuration."""
        self.config = TrainConfig.model_validate(settings)
        self.optimizer = build_optimizer(model.train(), self.config, self.backend)
        self.backend.prepare_optimizer(self.optimizer)
        loss = self.backend.compile(TASKS["classification"].loss_of(model), self.config.torch_compile)
        self._step = step_function(self.config, self.backend, model, self.optimizer, loss)
        self.watch(model)

    @torch.no_grad()
    def judge(self, expected: Logits) -> None:
        """Computes the logits of the initial weights from what the steps are given, without dropout."""
        super().judge(expected)
        self.model.eval()
        forward = self.forward()
        judged = [
            index for index, batch in enumerate(self.batches) if not expected.keys().isdisjoint(batch.rows.tolist())
        ]
        found = []
        for index in judged:
            found.append(forward(index))
            self.backend.step_boundary()
        self.backend.synchronize(*found)
        for index, logits in zip(judged, found, strict=True):
            self.keep(index, logits.cpu().float().numpy())
        self.model.train()

    def forward(self) -> Callable[[int], torch.Tensor]:
        """A function from the index of a batch to its logits."""
        compiled = self.backend.compile(self.model, self.config.torch_compile)
        return lambda index: compiled(self.inputs(index)[0])

    def run(self, index: int) -> torch.Tensor:
        inputs, labels = self.inputs(index)
        self.backend.set_learning_rate(self.optimizer, self.config.learning_rate)
        return self._step(len(self.batches[index].rows), inputs, labels)

    @abstractmethod
    def inputs(self, index: int) -> tuple[Any, torch.Tensor]:
        """The inputs and labels of the step on batch `index`, on the device."""

    def losses(self, results: torch.Tensor) -> list[float]:
        sizes = [len(self.batches[index].rows) for index in self._ran]
        return (results[:, 0] / torch.tensor(sizes)).tolist()

    def host_labels(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.texts.labels[self.batches[index].rows])


class TrainStep(_Training):
    """Training without a feature cache: frozen forward, cross entropy, the head's backward pass, one AdamW step."""

    name = "train_step"

    def prepare(self) -> None:
        self.train(self.head)
        self.labels = [self.host_labels(index) for index in range(len(self.batches))]

    def inputs(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return self.features(index), self.backend.place(self.labels[index])


class HeadStep(_Training):
    """Training with the feature cache: a step of the head on computed features."""

    name = "head_step"

    def prepare(self) -> None:
        self.train(self.head)
        sizes = [len(batch.rows) for batch in self.batches]
        self.classes = [sizes.index(size) for size in sizes]
        with torch.no_grad():
            # Joined on the host, since a compiling device would need one more program.
            features = torch.cat([self._computed(index) for index in range(len(sizes))])
        labels = torch.cat([self.host_labels(index) for index in range(len(sizes))])
        self.cache = CachedFeatures(self.backend.place(features), labels, self.backend, max(sizes))
        self.cache.start_epoch(np.arange(sum(sizes)))
        self.starts = np.cumsum([0, *sizes]).tolist()

    def _computed(self, index: int) -> torch.Tensor:
        features = self.features(index)
        self.backend.step_boundary()
        return features.cpu()

    def inputs(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cache.batch(self.starts[index], self.starts[index + 1])

    def context(self) -> AbstractContextManager[Any]:
        return self.backend.single_threaded()

    def kernel(self) -> tuple[str, str]:
        fused = self.backend.head_step(list(self.head.parameters()), self.optimizer)
        return ("autograd", torch.__version__) if fused is None else ("fused head step", __version__)


class FullStep(_Training):
    """A training step of the whole model: forward, backward and update of every layer."""

    name = "full_step"

    def prepare(self) -> None:
        apply_head, kernel = TASKS["classification"].apply_head, self.encoder.name
        self.whole = WholeModel(self.encoder.module, self.head, apply_head, self.backend, self.encoder.policy, kernel)
        self.train(self.backend.place(self.whole), freeze_encoder=False, torch_compile=self.encoder.torch_compile)
        self.labels = [self.host_labels(index) for index in range(len(self.batches))]

    def inputs(self, index: int) -> tuple[Any, torch.Tensor]:
        with self.backend.named_range("copy"):
            return self.backend.place((self.batches[index].inputs, self.labels[index]))

    def kernel(self) -> tuple[str, str]:
        trained = self.whole.trained
        return ("transformers", self.encoder.version) if trained is None else (trained.name, trained.version)


WORKLOAD_CLASSES: dict[str, type[Workload]] = {
    workload.name: workload for workload in (Forward, TrainStep, HeadStep, FullStep)
}
