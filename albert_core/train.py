"""Training: one loop for every device, head or whole model.

The story, top to bottom: open what the configuration names, choose the run's folder, build what is trained, go back
to a checkpoint if asked, then step, log, evaluate and save until the schedule ends or somebody stops it. The device
is asked for a value only when a line is logged, a split is evaluated or a checkpoint is written.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, Protocol

import torch

from .batches import BatchStream, Window
from .best import Best
from .checkpoint import Snapshot, read_checkpoint
from .config import TrainConfig
from .config_file import ResolvedConfig
from .events import Throughput, describe, draw, evaluate_now, fail, log_step, record, save_now, summarize
from .history import best_evaluation
from .job import Job, open_job, trains_on_features
from .optim import learning_rate_at
from .progress import Reporter, SilentReporter
from .ranks import StopVote, joined, launched
from .run import RunFolder, changed_keys, create_run, find_run, log_to_file, log_to_terminal, run_lock
from .saved_model import save_model
from .state import restore
from .step import make_step, optimizer_step
from .stopping import StopRequest, stop_on_signals
from .storage import fetch_latest, remote_url
from .tracking import make_trackers
from .training import Training, build_training, check_storage

log = logging.getLogger("isotrain")


@dataclass
class TrainResult:
    """How a run ended. `metrics` is its last evaluation, `best` the best one by `best_by`, and `best_checkpoint` the
    name of the checkpoint that holds its weights, if any does.

    `metric_names`: what an evaluation of its task and data has, in the order that tables show. `collapse`: why the
    model counts as collapsed, "" where it doesn't. `chart`: the metrics that are drawn. `example`: an input of its
    evaluation data, one text or two.
    """

    run: RunFolder
    status: str
    step: int
    total_steps: int
    metrics: dict[str, float]
    best: dict[str, float]
    best_by: Best
    seconds: float
    label: str
    metric_names: tuple[str, ...]
    best_checkpoint: str | None = None
    collapse: str = ""
    chart: list[str] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    example: tuple[str, ...] = ()


class Observer(Protocol):
    """Who looks at a run from inside: at its parts before the first step, after each step, after each evaluation."""

    def started(self, training: Training) -> None: ...

    def stepped(self, training: Training, window: Window, sums: torch.Tensor) -> None:
        """`sums` is what the step returned (see `optimizer_step`); the update is queued, not necessarily done."""

    def evaluated(self, training: Training, epoch: int) -> None: ...


def train(
    resolved: ResolvedConfig,
    *,
    resume: RunFolder | None = None,
    reporter: Reporter | None = None,
    observer: Observer | None = None,
) -> TrainResult:
    """Runs the configuration to its end, or to a stop that can be resumed.

    `resume` goes on with that run's checkpoint (`resume_option` says which); so does `resume_from_checkpoint: true`,
    with the run it finds. Raises UserError for input that can't be used and TrainingError when the loss stops being
    finite; the run's folder then still holds its checkpoints.
    """
    config = resolved.config
    reporter = reporter or SilentReporter()
    began = time.perf_counter_ns()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    ranks = launched()
    # What is drawn from torch's own generator (dropout) should differ between processes; all else has its own.
    torch.manual_seed(config.seed + ranks.rank)

    with (
        log_to_terminal(config.log_level if ranks.first else None) as early,
        stop_on_signals() as stop,
        _deterministic(config.deterministic),
        joined(ranks, config.backend_name, config.batch_size, config.process_timeout),
    ):
        resuming = resume is not None or config.resume_from_checkpoint
        ranks.from_first(lambda: check_storage(config, resuming))
        job = open_job(config, reporter.phase, ranks)
        run, is_new = ranks.from_first(lambda: (resume, False) if resume else _choose_run(resolved))
        with _kept(run, early) if ranks.first else nullcontext():
            with _removed_unless_started(run, is_new and ranks.first):
                training = _prepare(job, run, resolved, reporter, resuming)
            stop.loop_started = True
            reporter.start(training.state.step, training.total_steps, job.label)
            small = trains_on_features(config) and config.feature_cache
            try:
                if observer is not None:
                    observer.started(training)
                with job.backend.small_steps() if small else nullcontext():
                    status = _loop(training, reporter, stop, observer)
            except BaseException as error:
                fail(training, error)
                raise
            return _finish(training, status, began)


def _prepare(job: Job, run: RunFolder, resolved: ResolvedConfig, reporter: Reporter, resuming: bool) -> Training:
    """Everything up to the first step: parts, checkpoint, the run's small files, trackers."""
    describe(job, run)
    training = build_training(job, run, reporter)
    if resuming:
        _resume(training)
    if job.ranks.first:
        record(training, resolved)
        info = job.backend.info()
        training.trackers = make_trackers(
            job.config, run.path, training.state.step if resuming else None, info.emulated_label
        )
        training.trackers.watch(training.model)
    training.step = make_step(training)
    return training


def _choose_run(resolved: ResolvedConfig) -> tuple[RunFolder, bool]:
    """A new folder and True, or the earlier run that `resume_from_checkpoint` means and False."""
    config = resolved.config
    if not config.resume_from_checkpoint:
        return create_run(resolved), True
    named = config.run_name and (Path(config.project_dir).expanduser() / config.run_name).is_dir()
    if config.load_from_storage and not named:
        # The run may come from another machine: its checkpoint arrives in a folder that is new here.
        return create_run(resolved), True
    return find_run(config), False


@contextmanager
def _kept(run: RunFolder, early: MemoryHandler) -> Iterator[None]:
    """The run is this process's to write in: locked, and its log in it."""
    with run_lock(run), log_to_file(run.path / "train.log", early):
        yield


@contextmanager
def _removed_unless_started(run: RunFolder, is_new: bool) -> Iterator[None]:
    """A run that fails or is interrupted before its first step leaves no folder behind."""
    try:
        yield
    except BaseException:
        if is_new:
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def _resume(training: Training) -> None:
    job = training.job
    found = job.ranks.from_first(lambda: _read_saved(training))
    if found is None:
        return
    folder, saved = found
    restore(
        saved,
        folder,
        job,
        training.model,
        training.optimizer,
        training.scale,
        training.stream,
        training.state,
        training.total_steps,
    )
    before = saved.state["config"]
    if Best.by(before["checkpoint_metric"], before["checkpoint_metric_mode"]) != job.config.best:
        training.state.best = job.ranks.from_first(lambda: _best_so_far(training, saved))
    if not job.ranks.first:
        return
    changed = changed_keys(saved.state["config"], job.config)
    if changed:
        log.warning("resumed with other values than the checkpoint's: %s", "; ".join(changed))
    for path in training.store.set_aside_after(training.state.step):
        log.warning("%s is later than the step resumed from: it is set aside, not deleted", path.name)
    log.info("resumed from %s at step %d of %d", folder, training.state.step, training.total_steps)


def _best_so_far(training: Training, saved: Snapshot) -> dict[str, float]:
    """The best evaluation of the run that is gone on with, by a metric or a mode that it was not looked at for."""
    checkpoints = [{**info.metrics, "step": info.step} for info in training.store.list() if info.metrics]
    remembered = [saved.state["best"]] if saved.state["best"] else []
    return best_evaluation(training.run, training.job.config.best, [*checkpoints, *remembered], saved.step)


def _read_saved(training: Training) -> tuple[Path, Snapshot] | None:
    """The checkpoint to go on from; None where the run begins again at its first step."""
    config, run = training.job.config, training.run
    if config.load_from_storage:
        fetch_latest(remote_url(config.remote_path, config.storage_backend), run.checkpoints)
    elif config.resume_option == "last" and not training.store.list() and not run.is_complete():
        # Killed before its first checkpoint: the first step is where it can be gone on with, bit for bit.
        log.warning("%s has no checkpoint yet: it begins again at its first step", run.path)
        return None
    folder = training.store.find(config.resume_option, config.checkpoint_path or None)
    return folder, read_checkpoint(folder)


def _loop(training: Training, reporter: Reporter, stop: StopRequest, observer: Observer | None) -> str:
    """Steps until the schedule ends ("completed"), a stop is asked for ("stopped") or a collapse ends it ("collapsed").

    The last only where the configuration says so.
    """
    job, state, stream = training.job, training.state, training.stream
    config, backend = job.config, job.backend
    clock, vote = Throughput(), StopVote(job.ranks)
    while state.step < training.total_steps:
        training.source.start_epoch(stream.order())
        for window in stream.windows():
            rate = learning_rate_at(state.step, training.total_steps, config)
            backend.set_learning_rate(training.optimizer, rate)
            sums = optimizer_step(training, window)
            state.step += 1
            state.add(sums, window.num_samples)
            # Only now: what is summed is part of the step's one execution.
            backend.step_boundary()
            clock.samples += window.num_samples
            if observer is not None:
                observer.stepped(training, window, sums)

            due = _Due.after(state.step, window, stream, training.total_steps, config)
            if due.log:
                log_step(training, window.epoch, rate, clock, reporter)
            stopping = vote.agreed(stop.requested) or state.step == config.stop_at_step
            if due.evaluate or due.save or stopping:
                # Else queued steps would end while the clock stands.
                backend.synchronize(*training.model.parameters())
                with clock.paused():
                    if due.evaluate:
                        evaluate_now(training, window.epoch, reporter)
                        if observer is not None:
                            observer.evaluated(training, window.epoch)
                    if due.save or _improved(training) or (stopping and state.step < training.total_steps):
                        save_now(training, window)
            collapsed = config.stop_on_collapse and bool(state.watch.reason)
            if stopping or collapsed or state.step >= training.total_steps:
                vote.close()
                if state.step >= training.total_steps:
                    return "completed"
                return "collapsed" if collapsed else "stopped"
    return "completed"


def _improved(training: Training) -> bool:
    """Whether the evaluation of this very step is the best yet and is to be kept: saves may fall on other steps."""
    config, state = training.job.config, training.state
    wanted = config.save_strategy != "no" and config.keep_best_n > 0
    return wanted and state.evaluated_at == state.step and state.best.get("step") == state.step


@dataclass(frozen=True)
class _Due:
    """What follows an optimizer step."""

    log: bool
    evaluate: bool
    save: bool

    @staticmethod
    def after(step: int, window: Window, stream: BatchStream, total_steps: int, config: TrainConfig) -> _Due:
        last = step == total_steps
        epoch_ends = window.micro_batches[-1][1] == stream.num_samples and (window.epoch + 1) % config.epoch_freq == 0
        by_step = step % config.steps_freq == 0
        return _Due(
            log=by_step or last,
            evaluate=epoch_ends or last or (config.val_steps_freq is not None and step % config.val_steps_freq == 0),
            save={"epoch": epoch_ends or last, "step": by_step or last, "no": False}[config.save_strategy],
        )


def _finish(training: Training, status: str, began: int) -> TrainResult:
    job, run, state = training.job, training.run, training.state
    if job.ranks.first and status == "completed":
        save_model(run, training.model, job)
        training.trackers.artifact(run.model)
    seconds = (time.perf_counter_ns() - began) / 1e9
    summary: dict[str, Any] = {}
    if job.ranks.first:
        summary = summarize(training, status, seconds)
        training.trackers.summary(summary)
        draw(training, png=True)
        training.trackers.finish("failed" if status == "collapsed" else status)
    if job.ranks.first and state.watch.reason:
        kept = summary["best_checkpoint"]
        best = f"`isotrain predict {run.path} --checkpoint best`" if kept else "gone: no checkpoint holds them"
        log.warning("the newest weights are those of the collapsed model; the best are %s", best)
    if job.ranks.first and status == "completed":
        # Last, for it may delete what a resume needs: a run that dies before this line can still be finished.
        training.store.finish()
    return TrainResult(
        run=run,
        status=status,
        step=state.step,
        total_steps=training.total_steps,
        metrics=state.last_evaluation,
        best=state.best,
        best_by=job.config.best,
        best_checkpoint=summary.get("best_checkpoint"),
        seconds=seconds,
        label=job.label,
        metric_names=job.task.metrics_of(job.dataset),
        collapse=state.watch.reason,
        chart=job.config.chart,
        phases=job.phases,
        example=job.dataset.test.example,
    )


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """torch's deterministic algorithms while training, and what was set before afterwards."""
    if not wanted:
        yield
        return
    # cuBLAS reads this when its first handle is made; without it torch refuses its products as nondeterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
