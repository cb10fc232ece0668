"""What the loop, its log lines and a run's files know of a job, whatever it trains."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ... import UserError
from ...backends import Backend, CastPolicy, EnergyUse
from ..config.schema import TrainConfig
from ..processes.ranks import ALONE, Ranks
from ..runs.folder import RunFolder

PhaseProgress = Callable[[str], Callable[[int, int], None] | None]


@dataclass(kw_only=True)
class Job(ABC):
    """What a run trains, with the device open and the data read.

    Attributes:
        phases: Seconds that each part of opening took.
        energy: The energy counter, read once the device was open.
    """

    config: TrainConfig
    backend: Backend
    policy: CastPolicy
    phases: dict[str, float]
    energy: EnergyUse
    ranks: Ranks = ALONE

    @property
    def label(self) -> str:
        """What tables call the run's model, with the backend's caveat."""
        return self.model_label + self.backend.on_caveat

    @property
    @abstractmethod
    def model_name(self) -> str:
        """What the configuration calls the model."""

    @property
    @abstractmethod
    def model_label(self) -> str:
        """The model's name. It says if the weights are random."""

    @property
    @abstractmethod
    def random_weights(self) -> bool:
        """Whether an encoder's random weights stand in for pretrained ones."""

    @property
    @abstractmethod
    def data_label(self) -> str:
        """The data's name."""

    @property
    def counts_right(self) -> bool:
        """Whether a step counts correct answers, so that log lines have an accuracy."""
        return False

    @property
    def evaluates(self) -> bool:
        """Whether the run is evaluated."""
        return True

    @property
    def sharded(self) -> bool:
        """Whether the processes share out the model's weights."""
        return self.config.sharding == "fsdp" and self.ranks.size > 1

    @property
    def small_steps(self) -> bool:
        """Whether steps are too small to share among threads."""
        return False

    @property
    def example(self) -> tuple[str, ...]:
        """An input of the evaluation data to predict for: one text, or two. Empty if a run can't predict."""
        return ()

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with a run that resumes from it."""

    @abstractmethod
    def metric_words(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Names of an evaluation's figures in the order of the tables, "eval/loss" first, and the words of the log."""

    def metric_names(self, metrics: Mapping[str, float]) -> tuple[str, ...]:
        """The figures that the last table of a run has, also if it was stopped before its first evaluation."""
        return tuple(self.metric_words(metrics))

    @abstractmethod
    def notes(self) -> Iterator[str]:
        """What the log says of the job: what is trained first, then the data."""

    @abstractmethod
    def origin(self) -> dict[str, Any]:
        """What run.json says of the job, besides what all jobs have."""

    def record(self, run: RunFolder, *, new: bool) -> None:
        """Writes what predictions need besides configuration and weights into the run's folder.

        Args:
            new: Whether the folder has none of it yet.
        """
        del run, new

    def check_kept(self, run: RunFolder, trained: Mapping[str, Any]) -> None:
        """Checks that what the run's folder keeps is that of the weights with the identity `trained`.

        Raises:
            UserError: It isn't.
        """
        del run, trained


def check_compiles(config: TrainConfig, backend: Backend, ranks: Ranks) -> None:
    """Raises UserError if the step is to be compiled by torch.compile and can't be."""
    if config.torch_compile is None:
        return
    backend.check_compile_mode(config.torch_compile)
    if ranks.size > 1:
        raise UserError(
            f"torch_compile compiles the step of a run in one process, and this one has {ranks.size}; drop it"
        )


@contextmanager
def timed(phases: dict[str, float], name: str) -> Iterator[None]:
    """Records the seconds of the block in `phases`."""
    start = time.perf_counter_ns()
    yield
    phases[name] = (time.perf_counter_ns() - start) / 1e9
