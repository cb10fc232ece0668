"""Training: one loop for every device, for a head or a whole model.

From top to bottom: open what the configuration names, choose the run's folder, build the model, restore a checkpoint if
one is configured; then step, log, evaluate and save until the schedule ends or a stop is requested. Values are fetched
from the device only for a log line, an evaluation or a checkpoint.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from ... import RunError, UserError
from ...backends import backend_traits
from ..config.best import Best
from ..config.load import ResolvedConfig, load_config
from ..output.logs import log_to_terminal
from ..output.progress import Reporter
from ..output.trackers.registry import tracker_class
from ..processes.parent import stop_with_launcher
from ..processes.ranks import Ranks, StopVote, joined, launched, starter, watching
from ..processes.sharding import whole
from ..processes.signals import StopRequest, stop_on_signals
from ..runs.files import write_error
from ..runs.folder import RunFolder, changed_keys, earlier_run
from ..runs.saved_model import MODEL_FILE, save_model
from ..tasks import TASKS
from ..terminal.text import clean
from ..tokens.order import Window
from ..workload.load import WorkloadError
from .build import Training, check_storage, optimizer_step
from .events import Throughput, draw, early_stop, evaluate_now, fail, log_step, save_now, say_best_kept, summarize
from .foresee import check_names
from .job import open_job
from .start import open_folder, prepare
from .workload.job import open_workload_job

log = logging.getLogger("isotrain")


@dataclass
class TrainResult:
    """How a run ended.

    Attributes:
        metrics: The last evaluation.
        best: The best evaluation by `best_by`.
        metric_names: The metrics of its task and data, in the order of the tables.
        best_checkpoint: The name of the checkpoint with the weights of `best`, if there is one.
        collapse: Why the model counts as collapsed, or "".
        early_stop: Why the run ended before its last step, or "".
        chart: The metrics that are drawn.
        example: An input of the evaluation data: one text, or two. Empty if `before`.
        before: The run was already complete, so nothing was done.
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
    early_stop: str = ""
    chart: list[str] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    example: tuple[str, ...] = ()
    before: bool = False


class Observer(Protocol):
    """Watches a run from inside: its parts before the first step, each step, each evaluation."""

    def started(self, training: Training) -> None: ...

    def stepped(self, training: Training, window: Window, sums: torch.Tensor) -> None:
        """Called with the result of `optimizer_step`. The update is queued, but not necessarily done."""

    def evaluated(self, training: Training, epoch: int) -> None: ...


def train(
    resolved: ResolvedConfig,
    *,
    resume: RunFolder | None = None,
    reporter: Reporter | None = None,
    observer: Observer | None = None,
) -> TrainResult:
    """Runs the configuration to its end, or to a stop that can be resumed.

    Args:
        resume: The run to resume; `resume_option` chooses its checkpoint. With `resume_from_checkpoint`, the earlier
            run is found instead.

    Raises:
        UserError: Input that can't be used.
        RunError: The run failed (TrainingError if the loss is no longer finite).
        KeyboardInterrupt: The run was interrupted at once. If it had made a step, its folder and checkpoints stay.
    """
    config = resolved.config
    reporter = reporter or Reporter()
    # Checked first, so that a wrong name costs nothing.
    backend_traits(config.backend_name).check_kernel("kernel", config.kernel, config.backend_name)
    check_names(config)
    # Not in `check_names`: parity uses no tracker, whatever its configuration names.
    for name in config.tracker_names:
        tracker_class(name)
    began = time.perf_counter_ns()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    ranks = launched()
    stop_with_launcher()
    # Dropout draws from torch's own generator and should differ between processes. Everything else has its own
    # generator.
    torch.manual_seed(config.seed + ranks.rank)

    with (
        log_to_terminal(config.log_level if ranks.first else None) as early,
        stop_on_signals() as stop,
        _deterministic(config.deterministic),
        joined(ranks, config.backend_name, config.shared, config.process_timeout),
        ExitStack() as held,
    ):
        earlier = resume or ranks.from_first(lambda: earlier_run(config))
        if resume is None and earlier is not None and config.resume_from_checkpoint == "auto":
            completed = ranks.from_first(lambda: _completed_before(earlier, resolved))
            if completed is not None:
                stop.over = True
                return completed
        ranks.from_first(lambda: check_storage(config, earlier is not None or config.load_from_storage))
        kept = resolved.of_run()
        job = (open_workload_job if config.workload else open_job)(config, reporter.phase, ranks)
        run, is_new, check_folder = open_folder(job, kept, resume, held, early)
        with _ends(run, is_new, ranks, stop):
            training = prepare(job, run, kept, reporter, is_new)
            training.check_folder = check_folder
            if observer is not None:
                observer.started(training)
            stop.loop_started = True
            reporter.start(training.state.step, training.total_steps, job.label)
            try:
                advice = f"what was saved is kept: continue with: {resume_command(run, ranks)}"
                with (
                    watching(ranks, config.process_timeout, advice),
                    job.backend.single_threaded() if job.small_steps else nullcontext(),
                ):
                    status = _loop(training, reporter, stop, observer)
                result = _finish(training, status, began)
                # Only the final message is left.
                stop.over = True
                return result
            except BaseException as error:
                fail(training, error)
                raise


@contextmanager
def _ends(run: RunFolder, is_new: bool, ranks: Ranks, stop: StopRequest) -> Iterator[None]:
    """Removes the folder of a run that can't begin, and turns any failure after the first step into RunError,
    except one of a user's own code.

    The folder of an interrupted run stays, so that it can be resumed.
    """
    advice = clean(f"continue with: {resume_command(run, ranks)}")
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(advice) from interrupt
    except Exception as error:
        if stop.interrupted:
            raise KeyboardInterrupt(advice) from error
        if not stop.loop_started:
            if is_new and ranks.first:
                shutil.rmtree(run.path, ignore_errors=True)
            raise
        if isinstance(error, OSError):
            raise RunError(str(write_error(Path(error.filename or run.path), error))) from error
        if isinstance(error, UserError) and not isinstance(error, WorkloadError):
            raise RunError(str(error)) from error
        raise


def resume_command(run: RunFolder, ranks: Ranks) -> str:
    """The command line that resumes `run`, ready to paste."""
    return f"{starter(ranks)} train --resume {shlex.quote(str(run.path))}"


def _completed_before(run: RunFolder, resolved: ResolvedConfig) -> TrainResult | None:
    """The result of `run` if it reached its last step with exactly this configuration, else None."""
    summary = run.ended()
    if summary.get("status") != "completed" or not (run.model / MODEL_FILE).is_file():
        return None
    if changed_keys(load_config(run.config).config.model_dump(), resolved.of_run().config):
        return None
    known = TASKS[resolved.config.task].metrics if resolved.config.workload is None else summary
    names = [name for name in known if name in summary and name.startswith("eval/")]
    if not _is_whole(summary, names):
        log.warning("%s is damaged: it is made anew from the last checkpoint", run.summary)
        return None
    return TrainResult(
        run=run,
        status="completed",
        step=summary["step"],
        total_steps=summary["total_steps"],
        metrics={name: summary[name] for name in names},
        best=summary["best"],
        best_by=resolved.config.best,
        best_checkpoint=summary["best_checkpoint"],
        early_stop=str(summary.get("early_stop") or ""),
        seconds=summary["seconds"],
        label=summary["model"],
        metric_names=tuple(names),
        chart=resolved.config.chart,
        before=True,
    )


def _is_whole(summary: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether summary.json, which has no checksum, still contains everything that is shown of a completed run."""
    best = summary.get("best")
    if not isinstance(best, dict) or (best and "step" not in best) or not isinstance(summary.get("model"), str):
        return False
    figures = [summary.get(name) for name in ("step", "total_steps", "seconds", *names)]
    return all(isinstance(figure, (int, float)) for figure in (*figures, *best.values()))


def _loop(training: Training, reporter: Reporter, stop: StopRequest, observer: Observer | None) -> str:
    """Makes steps until the schedule ends, also by an early stop ("completed"), or a stop is requested ("stopped").

    If so configured, it also ends when the model collapses ("collapsed").
    """
    job, state, stream = training.job, training.state, training.stream
    config, backend = job.config, job.backend
    clock, vote = Throughput(), StopVote(job.ranks)

    def evaluated(epoch: int) -> bool:
        """Evaluates. If a stop comes first, the resumed run begins with the evaluation."""
        done = evaluate_now(training, epoch, reporter, lambda: vote.agreed(stop.requested))
        if done and observer is not None:
            observer.evaluated(training, epoch)
        return done

    position = stream.state()
    due = _Due.after(state.step, position, training)
    if due.evaluate and state.evaluated_at != state.step:
        with clock.paused():
            done = evaluated(position["epoch"] - (position["position"] == 0))
        if not done:
            vote.close()
            return "stopped"
        if due.save or _improved(training):
            save_now(training, None)
    if early_stop(training):
        vote.close()
        return "completed"
    if config.stop_at_step is not None and config.stop_at_step <= state.step < training.total_steps:
        # A scheduler may repeat the command that brought the run here.
        vote.close()
        return "stopped"
    while state.step < training.total_steps:
        training.source.start_epoch(stream.order())
        for window in stream.windows():
            rate = training.schedule.set(state.step, training.optimizer, backend)
            sums = optimizer_step(training, window)
            state.step += 1
            state.add(sums, window.num_samples)
            # After the sums are added, so that the addition is part of the step's one execution.
            backend.step_boundary()
            clock.samples += training.samples(window)
            if observer is not None:
                observer.stepped(training, window, sums)

            due = _Due.after(state.step, stream.state(window), training)
            if due.log:
                log_step(training, window.epoch, rate, clock, reporter)
            stopping = vote.agreed(stop.requested) or state.step == config.stop_at_step
            cut_short = early = False
            if due.evaluate or due.save or stopping:
                # Otherwise queued steps would finish while the clock is paused.
                backend.synchronize(*training.model.parameters())
                with clock.paused():
                    cut_short = due.evaluate and not evaluated(window.epoch)
                    early = bool(early_stop(training))
                    stopping = stopping or cut_short
                    unfinished = cut_short or state.step < training.total_steps
                    ended = early and config.save_strategy != "no"
                    if due.save or _improved(training) or ended or (stopping and unfinished):
                        save_now(training, window)
            collapsed = config.stop_on_collapse and bool(state.watch.reason)
            if stopping or collapsed or early or state.step >= training.total_steps:
                vote.close()
                if state.step >= training.total_steps and not cut_short:
                    return "completed"
                return "collapsed" if collapsed else "completed" if early else "stopped"
    return "completed"


def _improved(training: Training) -> bool:
    """Whether this step's evaluation is the best so far and should be saved, even if no save is due."""
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
    def after(step: int, position: dict[str, int], training: Training) -> _Due:
        """`position` is the stream's position after the step (see `BatchStream.state`)."""
        config, evaluates = training.job.config, training.job.evaluates
        if step == 0:
            return _Due(log=False, evaluate=evaluates and config.eval_on_start, save=False)
        last = step == training.total_steps
        epoch_ends = position["position"] == 0 and position["epoch"] % config.epoch_freq == 0
        by_step = step % config.steps_freq == 0
        within = config.val_steps_freq is not None and step % config.val_steps_freq == 0
        return _Due(
            log=by_step or last,
            evaluate=evaluates and (epoch_ends or last or within),
            save={"epoch": epoch_ends or last, "step": by_step or last, "no": False}[config.save_strategy],
        )


def _finish(training: Training, status: str, began: int) -> TrainResult:
    job, run, state = training.job, training.run, training.state
    training.check_folder()
    if status == "completed" and (job.ranks.first or job.sharded):
        tensors = {name: whole(tensor) for name, tensor in training.model.state_dict().items()}
        if job.ranks.first:
            belongs_to = {"model_name": job.model_name, "label": job.model_label, "identity": job.identity()}
            save_model(run, tensors, belongs_to)
            training.trackers.artifact(run.model)
    seconds = (time.perf_counter_ns() - began) / 1e9
    summary: dict[str, Any] = {}
    if job.ranks.first:
        summary = summarize(training, status, seconds)
        training.trackers.summary(summary)
        draw(training, png=True)
        training.trackers.finish("failed" if status == "collapsed" else status)
    if job.ranks.first and state.watch.reason:
        say_best_kept(training, summary["best_checkpoint"])
    if job.ranks.first and status == "completed":
        # Last, because it may delete what a resume needs. A run that dies earlier can still be finished.
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
        metric_names=job.metric_names(state.last_evaluation),
        collapse=state.watch.reason,
        early_stop=early_stop(training) if status == "completed" else "",
        chart=job.config.chart,
        phases=job.phases,
        example=job.example,
    )


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Uses torch's deterministic algorithms during training and restores the previous setting afterwards."""
    if not wanted:
        yield
        return
    # cuBLAS reads this when its first handle is made. Without it, torch refuses cuBLAS products as nondeterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
