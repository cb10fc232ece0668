"""How a run begins or is resumed: its folder, the files in it, and the state from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from logging.handlers import MemoryHandler
from pathlib import Path

from ..config.best import Best
from ..config.load import ResolvedConfig
from ..config.schema import TrainConfig
from ..output.logs import log_to_file
from ..output.progress import Reporter
from ..output.tracking import make_trackers
from ..runs.checkpoint import Snapshot, read_checkpoint, read_manifest
from ..runs.checkpoint_store import CheckpointStore
from ..runs.files import sweep, write_bytes, write_json, write_text
from ..runs.folder import RunFolder, RunLock, changed_keys, earlier_run, environment, new_run, run_lock
from ..runs.history import best_evaluation
from ..runs.manifest import CHANGING, CONFIG, ORIGIN, check_run, has_manifest, vouch, withdraw
from ..runs.remote import fetch_latest, remote_checkpoints, remote_url
from ..runs.saved_model import MODEL_FILE
from .base import Job
from .build import Training, build_training, make_step
from .events import describe
from .job import TextJob
from .snapshots import restore
from .workload.job import WorkloadJob
from .workload.training import build_workload_training, workload_step

log = logging.getLogger("isotrain")


def open_folder(
    job: Job, kept: ResolvedConfig, resume: RunFolder | None, held: ExitStack, early: MemoryHandler
) -> tuple[RunFolder, bool, Callable[[], None]]:
    """Opens the run's folder. In the first process, also locks it and sends the log to it, starting with the lines in
    `early`.

    Args:
        kept: The configuration that a new folder keeps.
        resume: The run to resume, if one was named.
        held: Keeps the lock and the log open.
        early: Log lines from before the folder was known.

    Returns:
        The folder, whether it is new, and a function that raises RunError once it is gone (see `RunLock`).
    """
    locks: list[RunLock] = []

    def open_here() -> tuple[RunFolder, bool]:
        run = resume or earlier_run(job.config)
        is_new = run is None
        if run is None:
            run, lock = new_run(kept, lambda folder: set_up(job, folder, kept), held)
        else:
            lock = held.enter_context(run_lock(run))
            if has_manifest(run.path):
                check_run(run.path)
                _check_kept(job, run)
            for folder in (run.path, run.checkpoints, run.model):
                sweep(folder)
        locks.append(lock)
        held.enter_context(log_to_file(run.path / "train.log", early))
        return run, is_new

    run, is_new = job.ranks.from_first(open_here)

    def check() -> None:
        for lock in locks:
            lock.check(run)

    return run, is_new, check


def set_up(job: Job, run: RunFolder, kept: ResolvedConfig) -> None:
    """Writes what a resume, `predict` and a reader need besides the weights, and the manifest with its checksums."""
    write_text(run.config, kept.to_yaml())
    job.record(run, new=not has_manifest(run.path))
    write_json(
        run.origin,
        {
            "model": job.model_label,
            "random_weights": job.random_weights,
            **job.origin(),
            "dataset": job.data_label,
            "device": asdict(job.backend.info()),
            "cast_policy": asdict(job.policy),
            "identity": job.identity(),
            "config_sources": kept.sources,
            "environment": environment(),
        },
    )
    vouch(run.path)


def prepare(job: Job, run: RunFolder, kept: ResolvedConfig, reporter: Reporter, is_new: bool) -> Training:
    """Builds everything from the run's folder up to its first step: parts, checkpoint, trackers."""
    describe(job, run)
    training = _built(job, run, reporter, kept.config)
    restored = (not is_new or job.config.load_from_storage) and _resume(training)
    if isinstance(job, TextJob) and job.config.head == "pooler_linear" and not restored:
        begun = "a random pooler: %s has none" if job.encoder.pooler is None else "the pretrained pooler of %s"
        log.info(f"head: pooler_linear begins with {begun}", job.encoder.label)
    if job.ranks.first:
        if not is_new:
            _keep_earlier(training, kept)
            set_up(job, run, kept)
        training.trackers = make_trackers(
            job.config,
            run.path,
            None if is_new else training.state.step,
            job.backend.caveat,
            evaluated=training.state.evaluated_at == training.state.step,
        )
        training.trackers.watch(training.model)
    training.step = workload_step(training) if isinstance(job, WorkloadJob) else make_step(training)
    return training


def _built(job: Job, run: RunFolder, reporter: Reporter, recorded: TrainConfig) -> Training:
    """All parts of the run but its step, before its first one."""
    if isinstance(job, WorkloadJob):
        return build_workload_training(job, run, recorded)
    assert isinstance(job, TextJob), "a job is one on texts or of a workload"
    return build_training(job, run, reporter, recorded)


def _keep_earlier(training: Training, kept: ResolvedConfig) -> None:
    """Renames what belongs to the earlier part of a resumed run: its configuration, finished model and summary.

    Nothing is moved before its replacement is written, or if no step is left that would replace it.
    """
    run, step = training.run, training.state.step
    until = run.path / f"config-until-step-{step}.yaml"
    before = run.config.read_bytes() if run.config.is_file() else b""
    # A file of that name is from a part that did train up to this step. A part killed before its next checkpoint did
    # not.
    if before not in (b"", kept.to_yaml().encode()) and not until.exists():
        write_bytes(until, before)
    goes_on = step < training.total_steps
    withdraw(run.path, CHANGING if goes_on else (CONFIG, ORIGIN))
    if goes_on:
        for earlier in (run.summary, run.model / MODEL_FILE):
            if earlier.is_file():
                earlier.replace(earlier.with_name(f"until-step-{step}-{earlier.name}"))


def _resume(training: Training) -> bool:
    """Restores the checkpoint to resume from. Returns False if there is none yet."""
    job = training.job
    found = job.ranks.from_first(lambda: _read_saved(training))
    if found is None:
        return False
    folder, saved = found
    restore(training, saved, folder)
    before = saved.state["config"]
    if Best.of(before) != job.config.best:
        training.state.best = job.ranks.from_first(lambda: _best_so_far(training, saved))
    if not job.ranks.first:
        return True
    changed = changed_keys(before, training.recorded)
    if changed:
        log.warning("resumed with other values than the checkpoint's: %s", "; ".join(changed))
    for path in training.store.set_aside_after(training.state.step):
        log.warning("%s is later than the step resumed from: it is set aside, not deleted", path.name)
    if training.store.after_save is not None and folder.parent == training.run.checkpoints:
        # A run killed after its save may not have copied it to the remote storage.
        training.store.after_save(folder)
    training.store.make_room(folder)
    log.info("resumed from %s at step %d of %d", folder, training.state.step, training.total_steps)
    return True


def _check_kept(job: Job, run: RunFolder) -> None:
    """Raises UserError if the run's labels or tokenizer are not those of its newest checkpoint."""
    usable = [info for info in CheckpointStore.for_reading(run.checkpoints, job.config.best).list() if not info.problem]
    trained = read_manifest(usable[-1].path)["identity"] if usable else run.identity()
    job.check_kept(run, trained)


def _best_so_far(training: Training, saved: Snapshot) -> dict[str, float]:
    """The resumed run's best evaluation by a metric or a mode that it did not track before."""
    checkpoints = [{**info.metrics, "step": info.step} for info in training.store.list() if info.metrics]
    remembered = [saved.state["best"]] if saved.state["best"] else []
    return best_evaluation(training.run, training.job.config.best, [*checkpoints, *remembered], saved.step)


def _read_saved(training: Training) -> tuple[Path, Snapshot] | None:
    """The checkpoint to resume from, or None if the run begins at its first step."""
    config, run = training.job.config, training.run
    or_start = config.resume_from_checkpoint == "auto"
    if config.load_from_storage:
        url = remote_url(config.remote_path, config.storage_backend)
        if not or_start or remote_checkpoints(url):
            fetch_latest(url, run.checkpoints)
    if (or_start or config.resume_option == "last") and not training.store.list() and not run.is_complete():
        # Killed before its first checkpoint, so it restarts at the first step, bit for bit.
        log.warning("%s has no checkpoint yet: it begins again at its first step", run.path)
        return None
    folder = training.store.find(config.resume_option, config.checkpoint_path or None)
    return folder, read_checkpoint(folder)
