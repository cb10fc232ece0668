"""The workloads of `isotrain bench` by baselines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from .workloads import Forward, FullStep


class BaselineForward(Forward):
    """The same with a `BaselineEncoder`. Its compiler is watched, too, and repeated texts are dropped."""

    @torch.no_grad()
    def run(self, index: int) -> torch.Tensor:
        features = self.features(index)
        with self.backend.single_threaded(), self.backend.named_range("head"):
            return self.head(features[: len(self.batches[index].rows)])

    def compile_count(self) -> int:
        return self.backend.compile_count() + self.encoder.compile_count()


class BaselineStep(FullStep):
    """The same in the loop of a `TrainerLoop`."""

    def prepare(self) -> None:
        self.watch(self.encoder.model)

    def kernel(self) -> tuple[str, str]:
        return self.encoder.name, str(self.encoder.version)

    def context(self) -> AbstractContextManager[Any]:
        labelled = [(batch.inputs, self.host_labels(index)) for index, batch in enumerate(self.batches)]
        return self.encoder.training(labelled)

    def forward(self) -> Callable[[int], torch.Tensor]:
        return lambda index: self.encoder.logits(self.batches[index].inputs)

    def run(self, index: int) -> torch.Tensor:
        return (self.encoder.step(index) * len(self.batches[index].rows))[None]
