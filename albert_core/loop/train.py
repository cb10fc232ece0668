"""Training: one loop for every device, head or whole model.

The story, top to bottom: open what the configuration names, choose the run's folder, build what is trained, go back
to a checkpoint if asked, then step, log, evaluate and save until the schedule ends or somebody stops it. The device
is asked for a value only when a line is logged, a split is evaluated or a checkpoint is written.
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
from ...backends import foresee_backend
from ..config.best import Best
from ..config.load import ResolvedConfig, load_config
from ..config.schema import TrainConfig
from ..output.logs import log_to_terminal
from ..output.progress import Reporter, SilentReporter
from ..processes.parent import stop_with_launcher
from ..processes.ranks import Ranks, StopVote, joined, launched, starter, watching
from ..processes.signals import StopRequest, stop_on_signals
from ..runs.files import write_error
from ..runs.folder import RunFolder, changed_keys, earlier_run
from ..runs.saved_model import MODEL_FILE, save_model
from ..tasks import TASKS
from ..terminal.invocation import predict_command
from ..terminal.text import clean
from ..tokens.order import Window
from .build import Training, check_storage
from .events import Throughput, draw, evaluate_now, fail, log_step, save_now, summarize
from .foresee import check_names
from .job import open_job, trains_on_features
from .optim import learning_rate_at
from .start import open_folder, prepare
from .step import optimizer_step

log = logging.getLogger("isotrain")


@dataclass
class TrainResult:
    """How a run ended. `metrics` is its last evaluation, `best` the best one by `best_by`, and `best_checkpoint` the
    name of the checkpoint that holds its weights, if any does.

    `metric_names`: what an evaluation of its task and data has, in the order that tables show. `collapse`: why the
    model counts as collapsed, "" where it doesn't. `chart`: the metrics that are drawn. `example`: an input of its
    evaluation data, one text or two; none where `before` says that it was completed already, and nothing was left to
    do.
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
    before: bool = False


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

    `resume` goes on with that run's checkpoint (`resume_option` says which); so does `resume_from_checkpoint`, with the
    run it finds. Raises UserError for input that can't be used, RunError when the run fails (TrainingError where the
    loss stops being finite), and KeyboardInterrupt when it is interrupted at once; the folder of a run that made a step
    stays, with its checkpoints.
    """
    config = resolved.config
    reporter = reporter or SilentReporter()
    # A name that does not exist costs nothing yet.
    foreseen = foresee_backend(config.backend_name, config.backend_options)
    foreseen.check_kernel("kernel", config.kernel, config.backend_name, ("transformers",))
    check_names(config)
    began = time.perf_counter_ns()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    ranks = launched()
    stop_with_launcher()
    # What is drawn from torch's own generator (dropout) should differ between processes; all else has its own.
    torch.manual_seed(config.seed + ranks.rank)

    with (
        log_to_terminal(config.log_level if ranks.first else None) as early,
        stop_on_signals() as stop,
        _deterministic(config.deterministic),
        joined(ranks, config.backend_name, config.batch_size, config.process_timeout),
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
        job = open_job(config, reporter.phase, ranks)
        run, is_new, check_folder = open_folder(job, kept, resume, held, early)
        with _ends(run, is_new, ranks, stop):
            training = prepare(job, run, kept, reporter, is_new)
            training.check_folder = check_folder
            if observer is not None:
                observer.started(training)
            stop.loop_started = True
            reporter.start(training.state.step, training.total_steps, job.label)
            small = trains_on_features(config) and config.feature_cache
            try:
                go_on = f"what was saved is kept: go on with: {resume_command(run, ranks)}"
                with (
                    watching(ranks, config.process_timeout, go_on),
                    job.backend.single_threaded() if small else nullcontext(),
                ):
                    status = _loop(training, reporter, stop, observer)
                result = _finish(training, status, began)
                # What is left is to say so.
                stop.over = True
                return result
            except BaseException as error:
                fail(training, error)
                raise


@contextmanager
def _ends(run: RunFolder, is_new: bool, ranks: Ranks, stop: StopRequest) -> Iterator[None]:
    """A run that can't begin leaves no folder behind; from its first step on it fails (RunError), whatever failed.

    One that is interrupted stays, and can be resumed.
    """
    go_on = clean(f"go on with: {resume_command(run, ranks)}")
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(go_on) from interrupt
    except Exception as error:
        if stop.interrupted:
            raise KeyboardInterrupt(go_on) from error
        if not stop.loop_started:
            if is_new and ranks.first:
                shutil.rmtree(run.path, ignore_errors=True)
            raise
        if isinstance(error, OSError):
            raise RunError(str(write_error(Path(error.filename or run.path), error))) from error
        if isinstance(error, UserError):
            raise RunError(str(error)) from error
        raise


def resume_command(run: RunFolder, ranks: Ranks) -> str:
    """The command line that goes on with `run`, ready to be pasted."""
    return f"{starter(ranks)} train --resume {shlex.quote(str(run.path))}"


def _completed_before(run: RunFolder, resolved: ResolvedConfig) -> TrainResult | None:
    """How `run` ended, if it reached its last step with this very configuration; else None."""
    summary = run.ended()
    if summary.get("status") != "completed" or not (run.model / MODEL_FILE).is_file():
        return None
    if changed_keys(load_config(run.config).config.model_dump(), resolved.of_run().config):
        return None
    names = [name for name in TASKS[resolved.config.task].metrics if name in summary]
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
        seconds=summary["seconds"],
        label=summary["model"],
        metric_names=tuple(names),
        chart=resolved.config.chart,
        before=True,
    )


def _is_whole(summary: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether summary.json, which has no checksum, still says all that is shown of a completed run."""
    best = summary.get("best")
    if not isinstance(best, dict) or (best and "step" not in best) or not isinstance(summary.get("model"), str):
        return False
    figures = [summary.get(name) for name in ("step", "total_steps", "seconds", *names)]
    return all(isinstance(figure, (int, float)) for figure in (*figures, *best.values()))


def _loop(training: Training, reporter: Reporter, stop: StopRequest, observer: Observer | None) -> str:
    """Steps until the schedule ends ("completed"), a stop is asked for ("stopped") or a collapse ends it ("collapsed").

    The last only where the configuration says so.
    """
    job, state, stream = training.job, training.state, training.stream
    config, backend = job.config, job.backend
    clock, vote = Throughput(), StopVote(job.ranks)

    def evaluated(epoch: int) -> bool:
        """Evaluates, unless a stop comes before the end: the resume then begins with the evaluation."""
        done = evaluate_now(training, epoch, reporter, lambda: vote.agreed(stop.requested))
        if done and observer is not None:
            observer.evaluated(training, epoch)
        return done

    position = stream.state()
    due = _Due.after(state.step, position, training.total_steps, config)
    if due.evaluate and state.evaluated_at != state.step:
        if not evaluated(position["epoch"] - (position["position"] == 0)):
            vote.close()
            return "stopped"
        if due.save or _improved(training):
            save_now(training, None)
    if config.stop_at_step is not None and config.stop_at_step <= state.step < training.total_steps:
        # A scheduler repeats the command that brought the run here.
        vote.close()
        return "stopped"
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

            due = _Due.after(state.step, stream.state(window), training.total_steps, config)
            if due.log:
                log_step(training, window.epoch, rate, clock, reporter)
            stopping = vote.agreed(stop.requested) or state.step == config.stop_at_step
            cut_short = False
            if due.evaluate or due.save or stopping:
                # Else queued steps would end while the clock stands.
                backend.synchronize(*training.model.parameters())
                with clock.paused():
                    cut_short = due.evaluate and not evaluated(window.epoch)
                    stopping = stopping or cut_short
                    unfinished = cut_short or state.step < training.total_steps
                    if due.save or _improved(training) or (stopping and unfinished):
                        save_now(training, window)
            collapsed = config.stop_on_collapse and bool(state.watch.reason)
            if stopping or collapsed or state.step >= training.total_steps:
                vote.close()
                if state.step >= training.total_steps and not cut_short:
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
    def after(step: int, position: dict[str, int], total_steps: int, config: TrainConfig) -> _Due:
        """`position` is the stream's after the step (see `BatchStream.state`)."""
        if step == 0:
            return _Due(log=False, evaluate=False, save=False)
        last = step == total_steps
        epoch_ends = position["position"] == 0 and position["epoch"] % config.epoch_freq == 0
        by_step = step % config.steps_freq == 0
        return _Due(
            log=by_step or last,
            evaluate=epoch_ends or last or (config.val_steps_freq is not None and step % config.val_steps_freq == 0),
            save={"epoch": epoch_ends or last, "step": by_step or last, "no": False}[config.save_strategy],
        )


def _finish(training: Training, status: str, began: int) -> TrainResult:
    job, run, state = training.job, training.run, training.state
    training.check_folder()
    if job.ranks.first and status == "completed":
        belongs_to = {"model_name": job.encoder.name, "label": job.encoder.label, "identity": job.identity()}
        save_model(run, training.model, belongs_to)
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
        predict = predict_command(str(run.path), job.dataset.test.example, "--checkpoint", "best")
        best = f"in {kept}: ask them by `{predict}`" if kept else "gone: no checkpoint holds them"
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
