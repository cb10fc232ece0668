"""What all observers of a run share: its steps, its header, and the trace that they become."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from .... import UserError
from ....albert_core.config.schema import TrainConfig
from ....albert_core.loop.base import Job
from ....albert_core.loop.build import Training
from ....albert_core.runs.folder import environment
from ....albert_core.tokens.order import Window
from ...outcome.parity import Ended
from ...outcome.trace_header import Evaluation, PromisedBudget, TraceEnvironment, TraceHeader, TracePolicy
from ..trace import Trace
from .observe import Steps, adam_on_device, trained, without_dropout

# Called with the steps made and their number.
Advance = Callable[[int, int], None]


class Recorder(ABC):
    """An observer of a training run that collects the contents of a trace."""

    header: TraceHeader
    training: Training
    steps: Steps

    def __init__(self, label: str, reference: Trace | None, advance: Advance | None = None) -> None:
        self.label, self.reference, self.advance = label, reference, advance
        self.outputs: list[np.ndarray] = []
        self.metrics: list[Evaluation] = []
        self.batches: list[str] = []
        self.batch_sizes: list[int] = []
        self.arrays: dict[str, np.ndarray] = {}

    def begin(self, training: Training) -> None:
        """Switches dropout off, and watches the steps of `training`."""
        self.training = training
        self.dropout_off = without_dropout(training.model)
        self.steps = Steps(training, trained(training))

    @abstractmethod
    def started(self, training: Training) -> None:
        """Makes the header, and observes what there is before the first step."""

    @abstractmethod
    def window(self, window: Window) -> tuple[str, int]:
        """A hash of the batches of a step, and their number of samples."""

    def stepped(self, training: Training, window: Window, sums: torch.Tensor) -> None:
        self.steps.add(training, window, sums)
        digest, samples = self.window(window)
        self.batches.append(digest)
        self.batch_sizes.append(samples)
        if self.advance is not None:
            self.advance(len(self.batches), training.total_steps)

    @abstractmethod
    def evaluated(self, training: Training, epoch: int) -> None:
        """Keeps the figures of an evaluation, and observes the outputs again."""

    def trace(self, config: TrainConfig, failure: str = "") -> Trace:
        """The trace of the observed run. `failure` says why training could not continue."""
        found = {
            "config": config.model_dump(),
            "batches": self.batches,
            "metrics": self.metrics,
            "batch_sizes": self.batch_sizes,
            "ended": Ended(step=len(self.batches), reason=failure) if failure else None,
        }
        arrays = {**self.steps.arrays(), "probe_logits": np.stack(self.outputs), **self.arrays}
        return Trace(self.header.model_copy(update=found), arrays)

    def make_header(self, job: Job, **own: Any) -> TraceHeader:
        """The header of a run that starts. `own` is what depends on what is trained."""
        info = job.backend.info()
        error_budget = replace(job.backend.error_budget(job.policy), head_dtype=job.config.head_dtype)
        return TraceHeader(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            label=self.label if job.backend.caveat in self.label else self.label + job.backend.on_caveat,
            backend=info.backend,
            device=info.name,
            emulated=info.emulated,
            policy=TracePolicy.of(job.policy),
            model=job.model_label,
            random_weights=job.random_weights,
            dataset=job.data_label,
            adam_on_device=adam_on_device(self.training.optimizer),
            error_budget=PromisedBudget.of(error_budget),
            replayed_sha256=None if self.reference is None else self.reference.states_sha256(),
            dropout_off=self.dropout_off,
            ended=None,
            environment=TraceEnvironment.model_validate(environment()),
            config={},
            batches=[],
            metrics=[],
            **own,
        )

    def check_reference(self, inputs: str, origin: str) -> None:
        """Raises UserError if the reference has other weights or `inputs`, so that a replay is impossible.

        Args:
            inputs: What the probes read.
            origin: What decides them.
        """
        reference = self.reference
        if reference is None:
            return
        ours, theirs = self.header, reference.header
        if theirs.weights_sha256 != ours.weights_sha256:
            raise UserError(
                f"the reference {reference.label} has other initial weights than {self.label} "
                f"(weights_sha256 {theirs.weights_sha256[:12]}, {ours.weights_sha256[:12]}); record both from "
                "the same model and seed"
            )
        if theirs.probe_sha256 != ours.probe_sha256:
            raise UserError(
                f"the reference {reference.label} has other {inputs} than {self.label}; record both from the same "
                f"{origin}"
            )
