"""What a step does: the workloads that `isotrain bench` measures, as targets of the measuring core.

Both start from token ids on the host, so that a step includes the copy to the device; tokenising is no part of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..albert_core.config import TrainConfig
from ..albert_core.head import ClassificationHead
from ..albert_core.optim import build_optimizer
from ..backends import Backend, FrozenForward
from ..kernels.weights import EncoderConfig
from .flops import encoder_flops, head_backward_flops, head_forward_flops
from .peers.base import PeerEncoder
from .texts import BenchBatch, Texts, cost_classes

# How many texts' logits a process hands back, for the comparison of layouts and kernels.
PROBED_TEXTS = 8


class Workload(ABC):
    """A target of `measure.measure`: steps on a list of batches, results that stay on the device until read.

    `probe` holds the logits of a few texts by their number, where the workload has any to compare.
    """

    name: str

    def __init__(
        self,
        backend: Backend,
        encoder: FrozenForward,
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
        return self.logits(self.encoder(self.backend.place(self.batches[index].inputs)))

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


class PeerForward(Forward):
    """The same through a peer's encoder, whose own compiler is watched too, and whose fillers are dropped."""

    def __init__(
        self,
        backend: Backend,
        encoder: PeerEncoder,
        head: ClassificationHead,
        batches: Sequence[BenchBatch],
        texts: Texts,
    ) -> None:
        self.peer = encoder
        super().__init__(backend, encoder, head, batches, texts)

    @torch.no_grad()
    def run(self, index: int) -> torch.Tensor:
        features = self.peer(self.backend.place(self.batches[index].inputs))
        return self.head(features[: len(self.batches[index].rows)])

    def compile_count(self) -> int:
        return self.backend.compile_count() + self.peer.compile_count()


class TrainStep(Workload):
    """The same forward, then cross entropy, the head's backward pass and one AdamW step."""

    name = "train_step"

    def prepare(self) -> None:
        self.optimizer = build_optimizer(self.head.parameters(), TrainConfig.model_validate({}), self.backend)
        self.backend.prepare_optimizer(self.optimizer)
        self.loss = self.backend.compile(self._mean_loss)
        self.labels = [torch.from_numpy(self.texts.labels[batch.rows]) for batch in self.batches]
        self._initial = self._weights()
        self._losses: dict[int, dict[tuple[int, int], float]] = {}
        self._step = self.backend.capture_step(self._plain_step, self.optimizer)

    def run(self, index: int) -> torch.Tensor:
        batch = self.backend.place(self.batches[index].inputs)
        labels = self.backend.place(self.labels[index])
        with torch.no_grad():
            features = self.encoder(batch)
        return self._step(features, labels)

    def _plain_step(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = self.loss(features, labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _mean_loss(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.head(features), labels)

    def fence(self) -> None:
        # Not the losses: reading one forces neither the gradients nor the update that came after it.
        self.backend.synchronize(*self.head.parameters())

    def read(self) -> list[str]:
        if not self._results:
            return []
        losses = [float(result) for result in self._results]
        for position, (index, loss) in enumerate(zip(self._ran, losses, strict=True)):
            # By pass and position: reading the same results twice must not look like two equal losses.
            self._losses.setdefault(index, {})[self._begun, position] = loss
        bad = sum(not math.isfinite(loss) for loss in losses)
        problems = [f"{bad} losses of {len(losses)} were NaN or infinite"] if bad else []
        if not bool(torch.isfinite(self._weights()).all()):
            problems.append("the head's weights became NaN or infinite")
        return problems

    def verdict(self) -> list[str]:
        if torch.equal(self._weights(), self._initial):
            return ["the head's weights never changed: the training steps did nothing"]
        repeated = [losses for losses in self._losses.values() if len(losses) > 1]
        if repeated and all(len(set(losses.values())) == 1 for losses in repeated):
            return ["the loss of a batch never changed from one pass to the next"]
        return []

    def _weights(self) -> torch.Tensor:
        """The head's weights, flat, on the host."""
        return torch.cat([parameter.detach().cpu().flatten() for parameter in self.head.parameters()])


WORKLOAD_CLASSES: dict[str, type[Workload]] = {"forward": Forward, "train_step": TrainStep}


def work_per_step(
    config: EncoderConfig, head: ClassificationHead, batches: Sequence[BenchBatch], workload: str, kernel: str
) -> dict[str, Any]:
    """Mean work of one step over the list: samples, real and computed tokens, useful and hardware matmul FLOPs.

    `kernel` is the one that ran: transformers' module computes its last repetition in full, the others for [CLS] only.
    """
    hidden, inner, labels = head.hidden.in_features, head.hidden.out_features, head.output.out_features
    totals = dict.fromkeys(("samples", "real_tokens", "padded_tokens", "useful_flops", "hardware_flops"), 0)
    for batch in batches:
        size = len(batch.rows)
        head_flops = head_forward_flops(hidden, inner, labels, size)
        if workload == "train_step":
            head_flops += head_backward_flops(hidden, inner, labels, size)
        computed = batch.computed.tolist()
        totals["samples"] += size
        totals["real_tokens"] += int(batch.lengths.sum())
        totals["padded_tokens"] += int(batch.computed.sum())
        totals["useful_flops"] += encoder_flops(config, batch.lengths.tolist()) + head_flops
        totals["hardware_flops"] += encoder_flops(config, computed, kernel != "transformers") + head_flops
    return {key: total / len(batches) for key, total in totals.items()}
