"""What a step does: the workloads that `isotrain bench` measures, as targets of the measuring core.

All but the head's step start from token ids on the host, so that a step includes the copy to the device; tokenising is
no part of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
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
from ..baselines.base import BaselineEncoder
from .texts import BenchBatch, Texts, cost_classes

# How many texts' logits a process hands back, for the comparison of layouts and kernels.
PROBED_TEXTS = 8


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder whose own layers are trained: transformers' module, and the dtypes that it is trained in."""

    module: nn.Module
    policy: CastPolicy
    name: str
    version: str
    skips_padding: bool = False


class Workload(ABC):
    """A target of `measure.measure`: steps on a list of batches, results that stay on the device until read.

    `encoder` is a FrozenEncoder, or a TrainedEncoder where the whole model is trained. `probe` holds the logits of a
    few texts by their number, where the workload has any to compare.
    """

    name: str

    def __init__(
        self,
        backend: Backend,
        encoder: Any,
        head: ClassificationHead,
        batches: Sequence[BenchBatch],
        texts: Texts,
    ) -> None:
        self.backend, self.encoder, self.batches, self.texts = backend, encoder, batches, texts
        self.head = backend.place(head)
        self.classes = cost_classes(batches)
        self.probe: dict[int, list[float]] = {}
        self._results: list[torch.Tensor] = []
        self._ran: list[int] = []
        self._begun = 0
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Builds what a workload needs beside a forward pass."""

    def surroundings(self) -> AbstractContextManager[Any]:
        """Held around all that is measured, as training holds it around its loop."""
        return nullcontext()

    def kernel(self) -> tuple[str, str]:
        """Name and version of what did the work."""
        return self.encoder.name, str(self.encoder.version)

    def begin(self) -> None:
        self._results, self._ran = [], []
        self._begun += 1

    def step(self, index: int) -> None:
        self._results.append(self.run(index))
        self._ran.append(index)
        self.backend.step_boundary()

    def compile_count(self) -> int:
        return self.backend.compile_count()

    @abstractmethod
    def run(self, index: int) -> torch.Tensor:
        """One step on batch `index`; returns what `read` is to look at."""

    @abstractmethod
    def fence(self) -> None: ...

    @abstractmethod
    def read(self) -> list[str]: ...

    @abstractmethod
    def verdict(self) -> list[str]:
        """What is wrong with the workload as a whole, asked after the last block."""


class Forward(Workload):
    """Frozen encoder and head, from host token ids to logits."""

    name = "forward"

    def prepare(self) -> None:
        self.logits = self.backend.compile(self.head)

    @torch.no_grad()
    def run(self, index: int) -> torch.Tensor:
        features = self.encoder(self.backend.place(self.batches[index].inputs))
        # As training holds it around the head: else a product of microseconds waits for the host's other threads.
        with self.backend.single_threaded():
            return self.logits(features)

    def fence(self) -> None:
        # Every step's logits: on a lazy device, those that nobody asks for are never computed.
        self.backend.synchronize(*self._results)

    def read(self) -> list[str]:
        if not self._results:
            return []
        # Joined on the host: for a device that compiles, joining would be one more program.
        values = np.concatenate([result.cpu().float().numpy() for result in self._results])
        once = dict.fromkeys(self._ran)
        rows = np.concatenate([self.batches[index].rows for index in once])
        for row, logits in zip(rows.tolist(), values, strict=False):
            if row < PROBED_TEXTS:
                self.probe[row] = logits.tolist()
        bad = int((~np.isfinite(values)).sum())
        return [f"{bad} logits of {values.size} were NaN or infinite"] if bad else []

    def verdict(self) -> list[str]:
        if any(max(logits) == min(logits) for logits in self.probe.values()):
            return ["all logits of a text were equal: the head did no work"]
        return []


class BaselineForward(Forward):
    """The same through a baseline's encoder, whose own compiler is watched too, and whose fillers are dropped."""

    def __init__(
        self,
        backend: Backend,
        encoder: BaselineEncoder,
        head: ClassificationHead,
        batches: Sequence[BenchBatch],
        texts: Texts,
    ) -> None:
        self.baseline = encoder
        super().__init__(backend, encoder, head, batches, texts)

    @torch.no_grad()
    def run(self, index: int) -> torch.Tensor:
        features = self.baseline(self.backend.place(self.batches[index].inputs))
        with self.backend.single_threaded():
            return self.head(features[: len(self.batches[index].rows)])

    def compile_count(self) -> int:
        return self.backend.compile_count() + self.baseline.compile_count()


class _Training(Workload):
    """Optimizer steps of `model`, by the function that training itself steps with (`albert_core.train`)."""

    def train(self, model: nn.Module, **settings: Any) -> None:
        """Sets `model` up to be trained under a configuration of the defaults but for `settings`."""
        self.model = model.train()
        self.config = TrainConfig.model_validate(settings)
        self.optimizer = build_optimizer(model, self.config, self.backend)
        self.backend.prepare_optimizer(self.optimizer)
        loss = self.backend.compile(TASKS["classification"].loss_of(model))
        self._step = step_function(self.config, self.backend, model, self.optimizer, loss)
        self._initial = self._weights()
        self._losses: dict[int, dict[tuple[int, int], float]] = {}

    def run(self, index: int) -> torch.Tensor:
        inputs, labels = self.inputs(index)
        self.backend.set_learning_rate(self.optimizer, self.config.learning_rate)
        return self._step(len(self.batches[index].rows), inputs, labels)

    @abstractmethod
    def inputs(self, index: int) -> tuple[Any, torch.Tensor]:
        """What the step on batch `index` takes: inputs and labels, on the device."""

    def fence(self) -> None:
        # Rule 2. Not the losses: reading one forces neither the gradients nor the update that came after it.
        self.backend.synchronize(*self.model.parameters())

    def read(self) -> list[str]:
        if not self._results:
            return []
        sums = torch.stack([result.cpu() for result in self._results])
        sizes = [len(self.batches[index].rows) for index in self._ran]
        losses = (sums[:, 0] / torch.tensor(sizes)).tolist()
        for position, (index, loss) in enumerate(zip(self._ran, losses, strict=True)):
            # By pass and position: reading the same results twice must not look like two equal losses.
            self._losses.setdefault(index, {})[self._begun, position] = loss
        bad = sum(not math.isfinite(loss) for loss in losses)
        problems = [f"{bad} losses of {len(losses)} were NaN or infinite"] if bad else []
        if not bool(torch.isfinite(self._weights()).all()):
            problems.append("the trained weights became NaN or infinite")
        return problems

    def verdict(self) -> list[str]:
        if torch.equal(self._weights(), self._initial):
            return ["the trained weights never changed: the training steps did nothing"]
        repeated = [losses for losses in self._losses.values() if len(losses) > 1]
        if repeated and all(len(set(losses.values())) == 1 for losses in repeated):
            return ["the loss of a batch never changed from one pass to the next"]
        return []

    def _weights(self) -> torch.Tensor:
        """What is trained, flat, on the host."""
        return torch.cat([parameter.detach().cpu().flatten() for parameter in self.model.parameters()])

    def host_labels(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.texts.labels[self.batches[index].rows])


class TrainStep(_Training):
    """The frozen forward, then cross entropy, the head's backward pass and one AdamW step: training without a cache."""

    name = "train_step"

    def prepare(self) -> None:
        self.train(self.head)
        self.labels = [self.host_labels(index) for index in range(len(self.batches))]

    def inputs(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch, labels = self.backend.place((self.batches[index].inputs, self.labels[index]))
        with torch.no_grad():
            return self.encoder(batch), labels


class HeadStep(_Training):
    """A step of the head on features that are computed already: what training with the feature cache does."""

    name = "head_step"

    def prepare(self) -> None:
        self.train(self.head)
        sizes = [len(batch.rows) for batch in self.batches]
        self.classes = [sizes.index(size) for size in sizes]
        with torch.no_grad():
            # Joined on the host: for a device that compiles, joining would be one more program.
            features = torch.cat([self._features(batch) for batch in self.batches])
        labels = torch.cat([self.host_labels(index) for index in range(len(sizes))])
        self.cache = CachedFeatures(self.backend.place(features), labels, self.backend, max(sizes))
        self.cache.start_epoch(np.arange(sum(sizes)))
        self.starts = np.cumsum([0, *sizes]).tolist()

    def _features(self, batch: BenchBatch) -> torch.Tensor:
        features = self.encoder(self.backend.place(batch.inputs))
        self.backend.step_boundary()
        return features.cpu()

    def inputs(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cache.batch(self.starts[index], self.starts[index + 1])

    def surroundings(self) -> AbstractContextManager[Any]:
        return self.backend.single_threaded()

    def kernel(self) -> tuple[str, str]:
        fused = self.backend.head_step(list(self.head.parameters()), self.optimizer)
        return ("autograd", torch.__version__) if fused is None else ("fused head step", __version__)


class FullStep(_Training):
    """A step of the whole model, encoder and head: forward, backward and update of every layer."""

    name = "full_step"

    def prepare(self) -> None:
        model = WholeModel(
            self.encoder.module, self.head, TASKS["classification"].apply_head, self.backend, self.encoder.policy
        )
        self.train(self.backend.place(model), freeze_encoder=False)
        self.labels = [self.host_labels(index) for index in range(len(self.batches))]

    def inputs(self, index: int) -> tuple[Any, torch.Tensor]:
        return self.backend.place((self.batches[index].inputs, self.labels[index]))


WORKLOAD_CLASSES: dict[str, type[Workload]] = {
    workload.name: workload for workload in (Forward, TrainStep, HeadStep, FullStep)
}
