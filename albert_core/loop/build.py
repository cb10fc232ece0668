"""Builds the parts of a training run from a job: model, optimizer, inputs, checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from ... import UserError
from ...backends.training.loss_scale import LossScale, loss_scale, unscaled
from ..config.schema import TrainConfig
from ..features.compute import CachedFeatures, InputSource, StreamedFeatures, TokenBatches, cached_features
from ..model.head import PoolerHead
from ..model.whole import WholeModel
from ..output.progress import Reporter
from ..output.tracking import Trackers
from ..runs.checkpoint_store import CheckpointStore
from ..runs.folder import RunFolder
from ..runs.remote import check_remote, remote_checkpoints, remote_url, sync_checkpoint
from ..tasks.task import Evaluation
from ..tokens.order import BatchStream, Window
from .base import Job
from .collapse import CollapseWatch
from .evaluate import evaluate
from .job import TextJob, build_encoder, trained_kernel, trains_on_features
from .optim import build_optimizer, takes_rows
from .schedule import OwnSchedule, Schedule
from .state import TrainingState
from .step import step_function

log = logging.getLogger("isotrain")


def _not_ready(*_: Any) -> torch.Tensor:
    raise AssertionError("a step was asked for before the loop was set up")


@dataclass
class Training:
    """All parts that the loop works with.

    Attributes:
        parallel: `model` as the step calls it. With several processes it is wrapped so that they sum their gradients.
        schedule: The learning rate of every step.
        evaluate: Computes an evaluation of `model` from `test_source`, or None if a stop is requested first.
        samples: The samples of a window, for the speed.
        recorded: The configuration as the run's folder keeps it.
        figures: What the newest step computed besides the loss, by name.
        check_folder: Raises RunError if the run's folder was replaced or is gone. Only the first process checks.
        step: Makes one optimizer step, once it is set. It takes the number of the window's samples and the inputs.
    """

    job: Job
    run: RunFolder
    model: nn.Module
    parallel: nn.Module
    loss: Callable[..., Any]
    optimizer: torch.optim.Optimizer
    scale: LossScale
    schedule: Schedule | OwnSchedule
    stream: BatchStream
    source: InputSource
    test_source: InputSource
    evaluate: Callable[[nn.Module, InputSource, Callable[[], bool]], Evaluation | None]
    store: CheckpointStore
    state: TrainingState
    total_steps: int
    recorded: TrainConfig
    trackers: Trackers = field(default_factory=lambda: Trackers(()))
    samples: Callable[[Window], int] = lambda window: window.num_samples
    figures: Mapping[str, Any] = field(default_factory=dict)
    check_folder: Callable[[], None] = field(default=lambda: None)
    #: Whether this process has evaluated yet.
    evaluated: bool = False
    step: Callable[..., torch.Tensor] = field(default=_not_ready)


def text_job(training: Training) -> TextJob:
    """The job of a run on texts."""
    assert isinstance(training.job, TextJob), "a workload's run was taken for one on texts"
    return training.job


def optimizer_step(training: Training, window: Window) -> torch.Tensor:
    """Makes one optimizer step over a window's micro-batches.

    Returns:
        Summed loss of the window's samples and the number classified correctly: float32 [2] (float64 if the head is),
        on the device.
    """
    with training.job.backend.named_range("copy"):
        batches = [training.source.batch(start, stop) for start, stop in window.micro_batches]
    return training.step(window.num_samples, *chain.from_iterable(batches))


def make_step(training: Training) -> Callable[..., torch.Tensor]:
    """The optimizer step of a run on texts (see `step_function`). Trackers see the gradients before each update."""
    job = text_job(training)

    def before_update() -> None:
        training.trackers.before_step(training.state.step + 1)

    def keep_norm(gradient_norm: torch.Tensor) -> None:
        training.state.gradient_norm = gradient_norm

    return step_function(
        job.config,
        job.backend,
        training.model,
        training.optimizer,
        training.loss,
        before_update,
        keep_norm,
        job.ranks,
        training.parallel,
        training.scale,
        job.task.weigher(),
    )


def build_training(job: TextJob, run: RunFolder, reporter: Reporter, recorded: TrainConfig) -> Training:
    """Builds everything but the step function and the trackers, at the run's first step."""
    config, backend = job.config, job.backend
    scale = unscaled() if trains_on_features(config) else loss_scale(backend, job.policy)
    head = job.task.head(job.encoder.config.hidden_size, job.num_labels, config)
    if isinstance(head, PoolerHead):
        _begin_with_pooler(head, job)
    head = head.to(getattr(torch, config.head_dtype))
    model: nn.Module
    if trains_on_features(config):
        model = backend.place(head)
    else:
        encoder: Any = build_encoder(job.encoder, config)
        if takes_rows(config) and backend.traits.trained_kernels and job.ranks.size == 1 and not config.torch_compile:
            encoder.embeddings.word_embeddings.sparse = True
            # Said explicitly, or torch warns that it doesn't check them.
            torch.sparse.check_sparse_tensor_invariants.disable()
        kernel, recompute = trained_kernel(config, job.layout), config.gradient_checkpointing
        whole = WholeModel(encoder, head, job.task.apply_head, backend, job.policy, kernel, recompute)
        model = backend.place(whole)
        log.info(
            "training %s: %s layout, kernel %s, %s master weights, products in %s",
            "the head, which reads every token of a frozen encoder" if config.freeze_encoder else "the whole model",
            job.layout,
            whole.kernel,
            job.policy.accumulate,
            job.policy.compute,
        )
        if config.torch_compile is not None:
            log.info(
                "torch.compile, %s: the first step of each batch shape waits for its program", config.torch_compile
            )
    model.train()
    optimizer = build_optimizer(model, config, backend)
    backend.prepare_optimizer(optimizer)
    source, test_source = _frozen_sources(job, reporter) if trains_on_features(config) else _token_batches(job)
    stream = BatchStream(
        job.train_tokens.num_texts,
        config.batch_size,
        config.gradient_accumulation_steps,
        config.seed,
        whole_windows=backend.static_shapes is not None,
    )
    total_steps = steps_in(stream, config)
    parallel = job.ranks.parallel(model)
    return Training(
        job=job,
        run=run,
        model=model,
        parallel=parallel,
        loss=backend.compile(job.task.loss_of(parallel), config.torch_compile),
        optimizer=optimizer,
        scale=scale,
        schedule=Schedule(config, total_steps),
        stream=stream,
        source=source,
        test_source=test_source,
        evaluate=partial(evaluate, job),
        store=checkpoint_store(run, config),
        state=TrainingState(
            backend.place(torch.zeros(2)),
            watch=CollapseWatch(job.task.chance_loss(job.train_tokens), job.task.least_loss(job.train_tokens)),
        ),
        total_steps=total_steps,
        recorded=recorded,
    )


def steps_in(stream: BatchStream, config: TrainConfig) -> int:
    """The optimizer steps of the whole run."""
    all_steps = stream.steps_per_epoch * config.num_epochs
    return min(all_steps, config.max_steps or all_steps)


def checkpoint_store(run: RunFolder, config: TrainConfig) -> CheckpointStore:
    """The run's checkpoints, as many as `config` keeps."""
    return CheckpointStore(
        run.checkpoints,
        keep_last_n=config.keep_last_n,
        keep_best_n=config.keep_best_n,
        best=config.best,
        save_optim=config.save_optim,
        after_save=partial(sync_checkpoint, url=_url(config)) if config.sync_to_storage else None,
    )


def _begin_with_pooler(head: PoolerHead, job: TextJob) -> None:
    """Gives the head the checkpoint's pretrained pooler, as AutoModelForSequenceClassification does."""
    pooler, name = job.encoder.pooler, job.encoder.label
    if pooler is None:
        return
    if not all(bool(torch.isfinite(parameter).all()) for parameter in pooler.parameters()):
        raise UserError(f"model_name {name!r} has NaN or inf in its pooler; give an intact checkpoint, or head: mlp")
    head.pooler.load_state_dict(pooler.state_dict())


def check_storage(config: TrainConfig, resuming: bool) -> None:
    """Checks `remote_path` before any work.

    Raises:
        UserError: It can't be used, or it holds another run's checkpoints.
    """
    if not (config.sync_to_storage or config.load_from_storage):
        return
    url = _url(config)
    check_remote(url)
    if config.sync_to_storage and not resuming and remote_checkpoints(url):
        raise UserError(
            f"remote_path {config.remote_path!r} has checkpoints of an earlier run; give this one a folder of its own, "
            "or continue the earlier one by resume_from_checkpoint: true"
        )


def _url(config: TrainConfig) -> str:
    return remote_url(config.remote_path, config.storage_backend)


def _token_batches(job: TextJob) -> tuple[TokenBatches, TokenBatches]:
    config = job.config
    batches = partial(
        TokenBatches, backend=job.backend, layout=job.layout, max_length=config.max_length, ranks=job.ranks
    )
    return (
        batches(job.train_tokens, rows=config.batch_size, micro_batches=config.gradient_accumulation_steps),
        batches(job.test_tokens, rows=config.eval_batch_size),
    )


def _frozen_sources(job: TextJob, reporter: Reporter) -> tuple[InputSource, InputSource]:
    config, backend = job.config, job.backend
    layout, length = job.layout, config.max_length
    encoder = job.frozen_encoder()
    described = f"kernel {encoder.name}, {layout} layout, {job.policy.label}"
    if not config.feature_cache:
        log.info("feature cache off: the frozen encoder runs at every step (%s)", described)
        train_batches, test_batches = _token_batches(job)
        return StreamedFeatures(encoder, train_batches), StreamedFeatures(encoder, test_batches)
    log.debug("feature cache on: the frozen encoder's features are computed once (%s)", described)
    began = time.perf_counter_ns()
    sources: list[InputSource] = []
    for name, tokens, rows in (
        ("train", job.train_tokens, config.batch_size),
        ("test", job.test_tokens, config.eval_batch_size),
    ):
        features, kept = cached_features(
            encoder,
            job.encoder.fingerprint,
            tokens,
            backend,
            job.policy,
            layout,
            length,
            reporter.phase(f"features {name}"),
            job.ranks,
        )
        sources.append(CachedFeatures(features, torch.from_numpy(tokens.labels.copy()), backend, rows, job.ranks))
        log.debug("features of %s %s texts %s", f"{tokens.num_texts:,}", name, "from the disk" if kept else "computed")
    job.phases["features"] = (time.perf_counter_ns() - began) / 1e9
    log.info("features of the frozen encoder ready after %.1f s (%s)", job.phases["features"], described)
    return sources[0], sources[1]
