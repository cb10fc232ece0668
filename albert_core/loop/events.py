"""What happens between the steps: log lines, evaluations, checkpoints, and the stop at a NaN."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import torch

from ... import RunError, UserError
from ...backends import UNTESTED
from ...kernels.words import count
from ..output.progress import Reporter, fits_terminal
from ..output.run_chart import write_charts
from ..processes.sharding import whole
from ..runs.files import write_json
from ..runs.folder import RunFolder, with_device
from ..terminal.invocation import command, predict_command
from ..terminal.text import error_line
from ..tokens.order import Window
from .base import Job
from .build import Training
from .snapshots import own_tensors, snapshot

log = logging.getLogger("isotrain")


class TrainingError(RunError):
    """A loss or a weight is no longer finite, so training can't continue."""


def log_step(training: Training, epoch: int, rate: float, clock: Throughput, reporter: Reporter) -> None:
    """Logs the means since the last line and checks them for NaN and for a collapse."""
    training.check_folder()
    state = training.state
    loss, accuracy = state.take_means(training.job.ranks)
    _require_finite(loss, training)
    norm = None if state.gradient_norm is None else float(state.gradient_norm)
    # A counter that wraps around must be read in between; the value isn't needed here.
    training.job.backend.energy()
    values = {
        "epoch": epoch + 1,
        **_figures(training),
        "train/loss": loss,
        **({"train/accuracy": accuracy} if training.job.counts_right else {}),
        "learning_rate": rate,
        **training.scale.figures(),
        "samples_per_second": clock.take(),
        "elapsed_seconds": clock.elapsed(),
    }
    if norm is not None:
        values["train/gradient_norm"] = norm
    training.trackers.log(state.step, values)
    reporter.update(state.step, values)
    log.debug(
        "step %d: loss %.6f, %.0f samples/s%s",
        state.step,
        loss,
        values["samples_per_second"],
        training.job.backend.on_caveat,
    )
    if state.watch.after_log(state.step, loss, norm):
        _say_collapsed(training)


def _figures(training: Training) -> dict[str, float]:
    """The newest step's figures besides the loss: the means over the processes."""
    names = sorted(training.figures)
    if not names:
        return {}
    own = torch.stack([torch.as_tensor(training.figures[name]).detach().float().cpu().reshape(()) for name in names])
    means = training.job.ranks.total(own) / training.job.ranks.size
    return {f"train/{name}": value for name, value in zip(names, means.tolist(), strict=True)}


def evaluate_now(training: Training, epoch: int, reporter: Reporter, asked: Callable[[], bool]) -> bool:
    """Evaluates and records the result, unless a stop is requested first.

    Args:
        asked: Whether a stop is requested. Every process calls it before every batch.

    Returns:
        Whether the evaluation was completed. Otherwise nothing is recorded.
    """
    job, state = training.job, training.state
    began = time.perf_counter_ns()
    evaluation = training.evaluate(training.model, training.test_source, asked)
    if evaluation is None:
        log.info("the evaluation of step %d was stopped; a resume begins with it", state.step)
        return False
    training.check_folder()
    metrics = evaluation.metrics
    seconds = (time.perf_counter_ns() - began) / 1e9
    _require_finite(metrics["eval/loss"], training)
    if job.ranks.first:
        for name, content in evaluation.files.items():
            write_json(training.run.path / name, with_device(content, job.backend.caveat))
    state.record_evaluation(metrics, job.config.best, job.config.early_stopping_threshold)
    training_loss = state.take_recent_loss(job.ranks)
    trained = {"train/loss_since_evaluation": training_loss} if state.step else {}
    values = {"epoch": epoch + 1, **trained, **metrics, "eval_seconds": seconds}
    training.trackers.log(state.step, values)
    reporter.update(state.step, values)
    _log_evaluation(training, epoch, f"{training_loss:.4f}" if state.step else "-", metrics)
    draw(training)
    if state.step:
        training.schedule.follow(metrics[job.config.checkpoint_metric])
        if state.watch.after_evaluation(state.step, training_loss, metrics):
            _say_collapsed(training)
    reason = early_stop(training)
    if reason:
        log.info("stopped early at step %d of %d: %s", state.step, training.total_steps, reason)
        training.trackers.log(state.step, {"event": "early_stop", "reason": reason})
    return True


def _log_evaluation(training: Training, epoch: int, training_loss: str, metrics: dict[str, float]) -> None:
    """Logs one row of the table of evaluations, and its header before this process's first row."""
    job, step = training.job, training.state.step
    words = {word: metrics[name] for name, word in job.metric_words(metrics).items()}
    loss, *others = words
    headers = ["epoch", f"step of {training.total_steps:,}", "train/loss", f"eval/{loss}", *others]
    cells = [f"{epoch + 1}", f"{step:,}", training_loss, *(f"{value:.4f}" for value in words.values())]
    widths = [max(len(header), len("0.0000")) for header in headers]
    header = _row(headers, widths)
    fits = fits_terminal(header)
    if not training.evaluated:
        training.evaluated = True
        log.info("evaluations of %s", job.label)
        if fits:
            log.info("%s%s", header, job.backend.on_caveat)
    named = ", ".join(f"{name}: {cell}" for name, cell in zip(headers, cells, strict=True))
    log.info("%s%s", _row(cells, widths) if fits else named, job.backend.on_caveat)


def _row(cells: list[str], widths: list[int]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def draw(training: Training, *, png: bool = False) -> None:
    """Draws the configured charts of the evaluations so far."""
    job = training.job
    write_charts(training.run, job.config.chart, f"{job.data_label}, {job.label}", png=png)


def _say_collapsed(training: Training) -> None:
    state, config = training.state, training.job.config
    state_of_best = (
        f"the best evaluation was at step {state.best['step']:.0f} ({config.best.metric} "
        f"{state.best[config.best.metric]:.4f})"
        if state.best
        else "no evaluation was made yet"
    )
    log.warning(
        "COLLAPSED by step %d: %s; %s; lower learning_rate, raise warmup_ratio, or set max_grad_norm and another seed",
        state.step,
        state.watch.reason,
        state_of_best,
    )
    training.trackers.log(state.step, {"event": "collapse", "reason": state.watch.reason})


def say_best_kept(training: Training, kept: str | None) -> None:
    """Warns that a collapsed run ends with weights that guess. `kept` is the checkpoint with the best ones, if any."""
    ask = ""
    if training.job.example:
        predict = predict_command(str(training.run.path), training.job.example, "--checkpoint", "best")
        ask = f": ask them by `{predict}`"
    best = f"in {kept}{ask}" if kept else "gone: no checkpoint holds them"
    log.warning("the newest weights are those of the collapsed model; the best are %s", best)


def early_stop(training: Training) -> str:
    """Why the run ends before its last step, by transformers' EarlyStoppingCallback, or "" if it goes on."""
    config, state = training.job.config, training.state
    patience = config.early_stopping_patience
    if patience is None or state.unimproved < patience or state.step >= training.total_steps:
        return ""
    metric = config.best.metric
    by = f" by more than {config.early_stopping_threshold:g}" if config.early_stopping_threshold else ""
    return (
        f"{metric} has not improved{by} in {count(state.unimproved, 'evaluation')}; the best was "
        f"{state.best[metric]:.4f} at step {state.best['step']:.0f}"
    )


def save_now(training: Training, window: Window | None) -> None:
    """Saves a checkpoint at the end of `window`, or at the stream's position if that is None."""
    job, state = training.job, training.state
    _require_finite(state.peek_means(job.ranks)[0], training)
    processes = job.ranks.gather(own_tensors(training))
    if not (job.ranks.first or job.sharded):
        return
    saved = snapshot(training, window, processes)
    if not job.ranks.first:
        return
    parameters = {name for name, _ in training.model.named_parameters(remove_duplicate=False)}
    for name, tensor in saved.model.items():
        if name in parameters and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"weight {name} is NaN or inf after step {state.step}; earlier checkpoints of {training.run.path} are "
                "kept; lower learning_rate or set max_grad_norm"
            )
    training.check_folder()
    folder = training.store.save(saved)
    log.debug("checkpoint %s", folder)


def _require_finite(loss: float, training: Training) -> None:
    """Raises TrainingError for a loss that isn't finite. Every process calls it with the same loss."""
    if math.isfinite(loss):
        return
    weights = training.model.named_parameters()
    broken = [name for name, weight in weights if not bool(torch.isfinite(whole(weight.detach())).all())]
    named = f"weight {broken[0]} is NaN or inf; " if broken else ""
    raise TrainingError(
        f"the loss is {loss} by step {training.state.step}; {named}earlier checkpoints of {training.run.path} are "
        "kept; lower learning_rate, set max_grad_norm, or check the data"
    )


def describe(job: Job, run: RunFolder) -> None:
    """Logs what the run is made of."""
    info = job.backend.info()
    made_of, *notes = job.notes()
    log.info("run %s", run.path)
    log.info("%s", made_of)
    log.info("backend %s on %s; %s: %s", info.backend, info.name, job.policy.label, job.policy.reason)
    if job.backend.traits.untested:
        check = command("conformance", "--backend", job.backend.name)
        log.warning("backend %s was %s; `%s` says what is wrong with it", info.backend, UNTESTED, check)
    if job.backend.caveat:
        log.warning("%s: every time and speed of this run is the host's, never a card's", job.backend.caveat)
    for note in notes:
        log.info("%s", note)


def summarize(training: Training, status: str, seconds: float | None = None) -> dict[str, Any]:
    """Writes summary.json (how the run ended and what it reached) and returns its content."""
    job, state = training.job, training.state
    info = job.backend.info()
    held = training.store.of_step(int(state.best["step"]), finished=status == "completed") if state.best else None
    summary = {
        "status": status,
        "step": state.step,
        "total_steps": training.total_steps,
        "model": job.model_label,
        "random_weights": job.random_weights,
        "dataset": job.data_label,
        "backend": info.backend,
        "device": info.name,
        "emulated": info.emulated,
        "processes": job.ranks.size,
        "dtype": job.policy.label,
        **state.last_evaluation,
        "best": state.best,
        "best_by": asdict(job.config.best),
        # Null if no checkpoint holds the weights of the best evaluation.
        "best_checkpoint": None if held is None else held.name,
        "collapse": {"step": state.watch.step, "reason": state.watch.reason} if state.watch.reason else None,
        "early_stop": early_stop(training) or None if status == "completed" else None,
        "seconds": None if seconds is None else round(seconds, 3),
        "phases": {name: round(value, 3) for name, value in job.phases.items()},
        "peak_memory_bytes": job.backend.memory().peak_bytes,
        "choices": [asdict(chosen) for chosen in job.backend.choices()],
        # Counted from the opening of the device. With several processes, it is what the first one's counter covers.
        "energy": asdict(job.backend.energy().since(job.energy)),
    }
    write_json(training.run.summary, summary)
    return summary


def fail(training: Training, error: BaseException) -> None:
    """Records in summary.json and in the trackers that the run ended early, as far as that is still possible."""
    if not training.job.ranks.first:
        return
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {error_line(error)}"
    try:
        training.check_folder()
    except RunError:
        # Trackers write to that folder too.
        return
    with suppress(OSError, UserError, RunError):
        summarize(training, status)
    training.trackers.summary({"status": status})
    training.trackers.finish("stopped" if status == "interrupted" else "failed")


class Throughput:
    """Training speed in samples per second. The clock stops during evaluation and saving."""

    def __init__(self) -> None:
        self.samples = 0
        self._began = self._since = time.perf_counter_ns()

    def take(self) -> float:
        """Samples per second since the last call. The caller has just fetched a loss, so the queued work is done."""
        now = time.perf_counter_ns()
        rate = self.samples * 1e9 / max(1, now - self._since)
        self.samples, self._since = 0, now
        return rate

    def elapsed(self) -> float:
        return (time.perf_counter_ns() - self._began) / 1e9

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter_ns()
        yield
        self._since += time.perf_counter_ns() - start
