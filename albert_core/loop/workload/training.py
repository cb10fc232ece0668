"""Builds the parts of a run of a user's workload: model, optimizer, batches, steps, evaluations."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .... import RunError
from ....backends.training.loss_scale import loss_scale
from ...config.schema import TrainConfig
from ...features.compute import InputSource
from ...processes.sharding import layers_of, shard, whole
from ...runs.folder import RunFolder
from ...tasks.task import Evaluation
from ...tokens.order import BatchStream, Window
from ...workload.batches import placed_ahead, samples
from ...workload.checks import numbers_of, operations_named, own_optimizer, seeded
from ...workload.load import WorkloadError
from ...workload.step import Loss, loss_of, place_model
from ...workload.step import workload_step as step_function
from ..build import Training, checkpoint_store, steps_in
from ..optim import build_optimizer
from ..schedule import OwnSchedule, Schedule
from ..state import TrainingState
from .job import WorkloadJob


def build_workload_training(job: WorkloadJob, run: RunFolder, recorded: TrainConfig) -> Training:
    """Builds everything but the step function and the trackers, at the run's first step.

    Raises:
        WorkloadError: A method of the workload raised an exception.
    """
    config, backend, workload = job.config, job.backend, job.workload
    scale = loss_scale(backend, job.policy)
    model = place_model(job.module, backend, job.policy).train()
    if job.sharded:
        shard(model, _layers(job, model), job.ranks.size)
    optimizer = own_optimizer(workload, model) or build_optimizer(model, config, backend)
    stream = _OwnOrder(job.num_batches, config.gradient_accumulation_steps, 1, config.seed)
    total_steps = steps_in(stream, config)
    schedule = _schedule(job, optimizer, total_steps)
    backend.prepare_optimizer(optimizer)
    loss: Loss = backend.compile(loss_of(workload.workload, model, backend, job.policy), config.torch_compile)
    parallel = model if job.sharded else job.ranks.parallel(_LossModule(loss, model), unused=job.unused)
    source = WorkloadBatches(job, stream)
    return Training(
        job=job,
        run=run,
        model=model,
        parallel=parallel,
        loss=loss if job.sharded else parallel,
        optimizer=optimizer,
        scale=scale,
        schedule=schedule,
        stream=stream,
        source=source,
        test_source=source,
        evaluate=partial(evaluate_workload, job),
        samples=source.samples,
        store=checkpoint_store(run, config),
        state=TrainingState(backend.place(torch.zeros(2))),
        total_steps=total_steps,
        recorded=recorded,
    )


def workload_step(training: Training) -> Callable[..., torch.Tensor]:
    """The optimizer step of a workload's run.

    Returns:
        ``step(num_batches, batches, shares)`` with the number of batches of all processes, and this one's. It returns
        this process's part of their summed loss, and a zero: float32 [2] (float64 if the module is), on the device.
    """
    job = training.job
    assert isinstance(job, WorkloadJob), "a run on texts has a step of `step`"
    backend, ranks, workload = job.backend, job.ranks, job.workload
    make = step_function(
        training.loss,
        training.model,
        backend,
        training.optimizer,
        training.scale,
        job.config.max_grad_norm,
        lambda: training.trackers.before_step(training.state.step + 1),
        training.parallel,
    )

    def step(num_batches: int, batches: list[Any], shares: list[float]) -> torch.Tensor:
        with operations_named(workload, backend, lambda: training.loss(batches[0])):
            made = make(batches, shares)
        training.figures = made.figures
        training.state.gradient_norm = whole(made.gradient_norm)
        loss = made.loss if num_batches == ranks.size else made.loss * backend.scalar(num_batches / ranks.size)
        return torch.stack((loss, torch.zeros_like(loss)))

    return step


class _OwnOrder(BatchStream):
    """A stream of batches in the workload's own order."""

    def order(self) -> np.ndarray:
        return np.empty(0, dtype=np.int64)


class _LossModule(nn.Module):
    """A loss as a module's forward, so that the user's code sees the model itself and not its wrapper."""

    def __init__(self, loss: Loss, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any) -> tuple[torch.Tensor, Mapping[str, Any]]:
        return self._loss(batch)


class WorkloadBatches:
    """The batches of each step, in the workload's own order. Epoch e reads ``batches(seed + e)``.

    Steps are read in order, so that the batches of the next one can be copied while the device works on this one. Of
    the batches of a step, each of several processes places and computes as many as the others. What there are too few
    of is filled up with the last one, at a share of 0.
    """

    def __init__(self, job: WorkloadJob, stream: BatchStream) -> None:
        self.job, self.stream = job, stream
        self._ahead: Iterator[tuple[list[Any], list[float]]] = iter(())
        self._expected: int | None = None
        self._read: deque[list[Any]] = deque()
        #: The newest step's batches on the host, of all processes.
        self.host: list[Any] = []

    def start_epoch(self, order: np.ndarray) -> None:
        """Begins the epoch that the stream is in."""
        del order
        self._expected = None

    def batch(self, start: int, stop: int) -> tuple[list[Any], list[float]]:
        """This process's part of the batches [start, stop) of the epoch, placed, and their shares of the step's loss.

        Raises:
            WorkloadError: The epoch has another number of batches than the first one.
        """
        if start != self._expected:
            self._read.clear()
            self._ahead = placed_ahead(self._steps(start, self.stream.epoch), self.job.backend, self.job.policy)
        self._expected = stop
        chosen = next(self._ahead)
        self.host = self._read.popleft()
        return chosen

    def samples(self, window: Window) -> int:
        """The samples of the newest window, over all processes."""
        del window
        return sum(samples(self.job.workload, batch) for batch in self.host)

    def _steps(self, start: int, epoch: int) -> Iterator[tuple[list[Any], list[float]]]:
        """For each step of the epoch from batch `start` on: this process's batches, on the host, and their shares."""
        job, size, each_step = self.job, self.job.ranks.size, self.stream.batch_size
        batches = epoch_batches(job, epoch)
        skipped = sum(1 for _ in islice(batches, start))
        for first in range(start, job.num_batches, each_step):
            wanted = min(each_step, job.num_batches - first)
            host = list(islice(batches, wanted))
            ends = first + wanted == job.num_batches
            if skipped < start or len(host) < wanted or (ends and next(batches, job) is not job):
                seed, place = job.config.seed, job.workload.place_of("batches")
                if epoch == 0:
                    raise WorkloadError(
                        f"{place}: batches({seed}) gives another number of batches than its length, {job.num_batches}; "
                        "correct its __len__"
                    )
                raise WorkloadError(
                    f"{place}: batches({seed + epoch}) has another number of batches than batches({seed}), which has "
                    f"{job.num_batches}; give every epoch as many"
                )
            every = each_step if job.backend.static_shapes is not None else wanted
            each = -(-every // size)
            own = range(job.ranks.rank * each, (job.ranks.rank + 1) * each)
            shares = [size / wanted if number < wanted else 0.0 for number in own]
            self._read.append(host)
            yield [host[min(number, wanted - 1)] for number in own], shares


def epoch_batches(job: WorkloadJob, epoch: int) -> Iterator[Any]:
    """The batches of an epoch, on the host. They have global generators of their own, apart from those of training."""
    seed = job.config.seed + epoch
    generators = _Generators(seed)
    with generators.used(), job.workload.blamed("batches"):
        batches = iter(job.workload.workload.batches(seed))
    while True:
        with generators.used(), job.workload.blamed("batches"):
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch


class _Generators:
    """The states of the global generators of Python, NumPy and torch's host inside some blocks."""

    def __init__(self, seed: int) -> None:
        with seeded(seed):
            self._inside = self._now()

    @contextmanager
    def used(self) -> Iterator[None]:
        """A block with these generators. Outside of it, they are as before."""
        outside = self._now()
        self._set(self._inside)
        try:
            yield
        finally:
            self._inside = self._now()
            self._set(outside)

    @staticmethod
    def _now() -> tuple[Any, Any, torch.Tensor]:
        return random.getstate(), np.random.get_state(), torch.get_rng_state()

    @staticmethod
    def _set(states: tuple[Any, Any, torch.Tensor]) -> None:
        python, numpy, host = states
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(host)


class _StoppedError(RunError):
    """A stop was requested during an evaluation."""


def evaluate_workload(
    job: WorkloadJob, model: nn.Module, source: InputSource, stopped: Callable[[], bool]
) -> Evaluation | None:
    """Computes the workload's own figures from the batches of its first epoch. Leaves the generators as they were.

    Several processes evaluate all batches each, and all have the first one's figures.

    Args:
        stopped: Whether a stop is requested. Every process calls it before every batch.

    Returns:
        None if it was stopped.

    Raises:
        WorkloadError: `evaluate` returned no figures, or not those that the configuration names.
    """
    del source
    workload, backend = job.workload, job.backend
    method = workload.optional("evaluate")
    assert method is not None, "a workload without evaluate has no evaluations"
    generators, training = backend.rng_state(), model.training
    model.eval()
    try:
        with torch.no_grad(), backend.autocast(job.policy), workload.blamed("evaluate"):
            found = method(model, _Evaluated(job, stopped))
    except _StoppedError:
        return None
    finally:
        model.train(training)
        backend.set_rng_state(generators)
    numbers = numbers_of(workload, "evaluate", found)
    figures = {f"eval/{name}": value for name, value in numbers.items()}
    lacking = [name for name in ("eval/loss", job.config.best.metric, *job.config.chart) if name not in figures]
    if lacking:
        raise WorkloadError(
            f"{workload.place_of('evaluate')}: evaluate returned no {lacking[0].removeprefix('eval/')!r}; return it, "
            f"beside {', '.join(numbers) or 'nothing'}"
        )
    return Evaluation(job.ranks.gather(figures)[0])


class _Evaluated:
    """The placed batches of an evaluation, for any number of iterations."""

    def __init__(self, job: WorkloadJob, stopped: Callable[[], bool]) -> None:
        self.job, self.stopped = job, stopped

    def __iter__(self) -> Iterator[Any]:
        for batch in placed_ahead(epoch_batches(self.job, 0), self.job.backend, self.job.policy):
            if self.stopped():
                raise _StoppedError
            yield batch
            self.job.backend.step_boundary()


def _layers(job: WorkloadJob, model: nn.Module) -> list[nn.Module]:
    """The parts of the model that are sharded one by one."""
    own = job.workload.optional("layers")
    if own is None:
        return layers_of(model)
    with job.workload.blamed("layers"):
        return list(own(model))


def _schedule(job: WorkloadJob, optimizer: torch.optim.Optimizer, total_steps: int) -> Schedule | OwnSchedule:
    """The configured schedule, or the workload's own rates."""
    workload = job.workload
    own = workload.optional("schedule")
    if own is None and workload.optional("optimizer") is None:
        return Schedule(job.config, total_steps)
    if own is None:
        return OwnSchedule(optimizer, None)

    def made(copied: torch.optim.Optimizer) -> LRScheduler:
        with workload.blamed("schedule"):
            found: LRScheduler = own(copied, total_steps)
        if not hasattr(found, "step") or isinstance(found, ReduceLROnPlateau):
            raise WorkloadError(
                f"{workload.place_of('schedule')}: schedule returned a {type(found).__name__}; return a scheduler of "
                "torch.optim.lr_scheduler that follows the steps alone"
            )
        return found

    return OwnSchedule(optimizer, made)
