"""Observes a run of a user's own module: the states between its layers, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from .... import UserError
from ....albert_core.config.schema import TrainConfig
from ....albert_core.loop.build import Training
from ....albert_core.loop.workload.job import WorkloadJob
from ....albert_core.loop.workload.training import WorkloadBatches, epoch_batches
from ....albert_core.tokens.order import Window
from ....albert_core.workload.batches import digest, digest_all, placed
from ....albert_core.workload.checks import operations_named, trial
from ....albert_core.workload.step import loss_of
from ...outcome.trace_header import Evaluation
from ..trace import Trace
from .layers import LayerCalls, floating, named_layers
from .observe import on_host_wide
from .recipe import recipe_of
from .recorder import Recorder

# The most elements that are kept of what a module returns.
OUTPUT_ELEMENTS = 2**18


class ModuleRecorder(Recorder):
    """Observes a run of a workload. Its first batch is the probe, which layers and outputs are observed with.

    The probe runs in evaluation mode. Without `evaluate`, its loss after the last step is the run's evaluation.
    """

    def started(self, training: Training) -> None:
        self.begin(training)
        job, model = _job(training), training.model
        training.step = _within(job.backend.rounding, training.step)
        training.evaluate = _within(job.backend.rounding, training.evaluate)
        self.probe = placed(next(epoch_batches(job, 0)), job.backend, job.policy)
        self.loss = loss_of(job.workload.workload, model, job.backend, job.policy)
        if self.reference is None:
            self._check_repeats(job)
        layers = named_layers(job.workload, model)
        calls = self._calls(LayerCalls(layers))
        compiled = f", torch.compile {job.config.torch_compile}" if job.config.torch_compile else ""
        self.header = self.make_header(
            job,
            kernel=f"own module{compiled}",
            layout="own batches",
            weights_sha256=job.weights_sha256,
            probe_sha256=job.batches_sha256,
            recipe=recipe_of(job.config, training.total_steps, workload_sha256=job.workload.sha256),
            layers=calls.names,
            unknown=job.backend.unknown_operations(self._run),
        )
        self.check_reference("batches", "workload and seed")
        self.arrays |= calls.states()
        if self.reference is not None:
            wide = getattr(torch, job.policy.accumulate)
            given = [torch.from_numpy(one).to(wide) for one in self.reference.layer_inputs]
            self.arrays |= self._calls(LayerCalls(layers, job.backend.place(given))).replay()
        self._probe()
        job.backend.step_boundary()

    def stepped(self, training: Training, window: Window, sums: torch.Tensor) -> None:
        super().stepped(training, window, sums)
        step = training.state.step
        if step == training.total_steps and not training.job.evaluates:
            self.metrics.append(Evaluation(epoch=window.epoch + 1, step=step, loss=self._probe()))

    def window(self, window: Window) -> tuple[str, int]:
        source = self.training.source
        assert isinstance(source, WorkloadBatches), "the source of a workload's run"
        return digest_all([digest(batch) for batch in source.host]), source.samples(window)

    def evaluated(self, training: Training, epoch: int) -> None:
        figures = {key.removeprefix("eval/"): value for key, value in training.state.last_evaluation.items()}
        self.metrics.append(
            Evaluation.model_validate({**figures, "epoch": epoch + 1, "step": training.state.step}, strict=False)
        )
        self._probe()

    def trace(self, config: TrainConfig, failure: str = "") -> Trace:
        trace = super().trace(config, failure)
        # A workload says by no common name whether an answer is right.
        del trace.arrays["right"]
        return trace

    def _probe(self) -> float:
        """Keeps what the module returns for the probe, and returns the loss."""
        found: list[Any] = []
        hook = self.training.model.register_forward_hook(lambda *call: found.append(call[-1]))
        try:
            loss = self._run()
        finally:
            hook.remove()
        # The largest, since a loss or a norm may be returned beside it.
        output = max([*floating(found[-1:]), loss], key=torch.Tensor.numel)
        flat = on_host_wide(output).reshape(-1, 1)
        self.outputs.append(flat[:: -(-len(flat) // OUTPUT_ELEMENTS)])
        return float(loss)

    def _calls(self, calls: LayerCalls) -> LayerCalls:
        with calls.watched():
            self._run()
        return calls

    @torch.no_grad()
    def _run(self) -> torch.Tensor:
        """The loss of the probe."""
        job, model = _job(self.training), self.training.model
        training = model.training
        model.eval()
        try:
            with (
                operations_named(job.workload, job.backend, lambda: self.loss(self.probe)),
                job.backend.rounding(),
            ):
                loss, _ = self.loss(self.probe)
        finally:
            model.train(training)
        return loss

    def _check_repeats(self, job: WorkloadJob) -> None:
        """Raises UserError if the loss draws random numbers although dropout is off."""
        losses = []
        for seed in (0, 1):
            with trial(self.training.model, seed, training=True):
                losses.append(float(self.loss(self.probe)[0].detach()))
        if losses[0] != losses[1]:
            raise UserError(
                f"{job.workload.place_of('loss')}: the loss draws random numbers although dropout layers are off, and "
                "every device draws others; draw them in batches, or take dropout from nn.Dropout"
            )


def _job(training: Training) -> WorkloadJob:
    assert isinstance(training.job, WorkloadJob), "a run on texts has another recorder"
    return training.job


def _within(context: Callable[[], AbstractContextManager[Any]], call: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*arguments: Any) -> Any:
        with context():
            return call(*arguments)

    return inside
