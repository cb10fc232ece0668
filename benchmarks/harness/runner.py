"""Starts worker processes one after the other, ends them at the time limit, and leaves none behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...albert_core.processes.parent import LIFELINE
from ...albert_core.processes.signals import interrupted_by_signals
from ...albert_core.runs.files import open_anew, scratch_folder
from ...albert_core.terminal.text import clean, shorten
from .answer import read_answer
from .document import BACKEND, RUN, TARGET, Measured, Part, Peaks, Refused, Sweep
from .plan import Plan, TargetSpec
from .worker import WorkerSpec

WORKER = (sys.executable, "-m", "isotrain.benchmarks.harness.worker")
STDERR_LINES = 15
# The variable with the descriptor that a process writes its progress to.
PROGRESS = "ISOTRAIN_PROGRESS"
# The process number of a target's sweep, which runs before the measured processes.
SWEEP = -1
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class WorkerRun:
    """How one process ended: with a `document` or a `sweep`, or with an `error` and the targets it concerns."""

    target: int
    process: int
    seconds: float
    document: Measured | None = None
    sweep: Sweep | None = None
    error: str = ""
    scope: str = TARGET
    user_error: bool = False

    @property
    def complete(self) -> bool:
        return self.document is not None or self.sweep is not None


def run_workers(
    plan: Plan, started: Callable[[int, int], None], command: Sequence[str] = WORKER
) -> Iterator[WorkerRun]:
    """Runs the plan's processes in order and yields each as it ends.

    Each gets the peaks that earlier ones measured on its backend. A target is not started again after a process of it
    failed. Ctrl-C and SIGTERM end the running process and raise KeyboardInterrupt.

    Args:
        started: Called with target and process before each.
    """
    failed: set[int] = set()
    peaks: dict[str, list[Peaks]] = {spec.backend: [] for spec in plan.targets}
    with scratch_folder("isotrain-bench") as folder, interrupted_by_signals():
        for target, process in plan.order:
            if target in failed:
                continue
            started(target, process)
            result = folder / f"{target}-{process}.json"
            known = peaks[plan.targets[target].backend]
            outcome = _run_worker(plan, target, process, result, command, known_peaks=known)
            if outcome.document is None:
                failed.update(concerned(plan, outcome))
            else:
                known.append(outcome.document.peaks)
            yield outcome


def run_sweeps(plan: Plan, started: Callable[[int, int], None], command: Sequence[str] = WORKER) -> Iterator[WorkerRun]:
    """Runs a sweep for each target that has several shapes to choose from, and yields each as it ends."""
    with scratch_folder("isotrain-bench") as folder, interrupted_by_signals():
        for target, specs in plan.candidates.items():
            started(target, SWEEP)
            result = folder / f"{target}-sweep.json"
            yield _run_worker(plan, target, SWEEP, result, command, list(specs))


def worker_environment(threads: int | None) -> dict[str, str]:
    """The parent's environment variables, with the thread counts that libraries read before torch can set them."""
    environment = dict(os.environ, HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
    if threads is not None:
        environment.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    return environment


def _run_worker(
    plan: Plan,
    target: int,
    process: int,
    result: Path,
    command: Sequence[str],
    candidates: Sequence[TargetSpec] = (),
    known_peaks: Sequence[Peaks] = (),
) -> WorkerRun:
    spec = WorkerSpec(
        options=plan.options,
        target=plan.targets[target],
        candidates=list(candidates),
        process=process,
        known_peaks=list(known_peaks),
        trace=_trace(plan, target) if plan.options.profile and process == 0 else None,
        result=str(result),
    )
    ended = run_process(command, spec, result.with_suffix(".log"), plan.options.threads, plan.options.time_limit)
    if ended.timed_out:
        error = f"took longer than the time limit of {plan.options.time_limit:g} s and was ended{said(ended.log)}"
        return WorkerRun(target, process, ended.seconds, error=error)
    return judge(target, process, ended, result)


def _trace(plan: Plan, target: int) -> str:
    """Where the trace of a target's profile goes."""
    name = re.sub(r"[^\w.-]+", "-", plan.targets[target].label)
    return str(Path(plan.options.traces, f"{name}.json.gz"))


@dataclass(frozen=True)
class Ended:
    """How a process ended. A negative `code` is the signal that killed it. `log` has its output."""

    code: int
    seconds: float
    timed_out: bool
    log: Path


def run_process(
    command: Sequence[str],
    spec: Part | None,
    log: Path,
    threads: int | None,
    time_limit: float,
    extra: dict[str, str] | None = None,
    hear: Callable[[str], object] | None = None,
) -> Ended:
    """Runs a process to its end. The time limit and an interruption end it, too.

    Args:
        spec: Given as JSON on its stdin.
        log: Gets its output.
        time_limit: In seconds.
        extra: Environment variables beside those of `worker_environment`.
        hear: Called with each line that it writes to the descriptor in its variable ISOTRAIN_PROGRESS.
    """
    start = time.perf_counter_ns()
    with _heard(hear) as (ends, named), running(command, spec, log, threads, (extra or {}) | named, ends) as worker:
        for end_of_worker in ends:
            # Or else the lines would never end.
            os.close(end_of_worker)
        # A wait with a timeout wakes twenty times a second and takes the CPU from the measured process.
        timed_out = threading.Event()
        limit = threading.Timer(time_limit, _expire, (worker, timed_out))
        limit.start()
        try:
            worker.wait()
        finally:
            limit.cancel()
    return Ended(worker.returncode, (time.perf_counter_ns() - start) / 1e9, timed_out.is_set(), log)


@contextmanager
def _heard(hear: Callable[[str], object] | None) -> Iterator[tuple[tuple[int, ...], dict[str, str]]]:
    """A pipe whose lines go to `hear`: the descriptor to write to, which the block closes, and the variable."""
    if hear is None:
        yield (), {}
        return
    lines, writing = os.pipe()

    def listen() -> None:
        with os.fdopen(lines, encoding="utf-8", errors="replace") as told:
            for line in told:
                hear(line.rstrip())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    yield (writing,), {PROGRESS: str(writing)}
    # A child of the process might hold the pipe longer.
    listener.join(GRACE_SECONDS)


@contextmanager
def running(
    command: Sequence[str],
    spec: Part | None,
    log: Path,
    threads: int | None,
    extra: dict[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a process as `run_process` does, and ends it with all its children when the block ends.

    pass_fds: file descriptors that it inherits.
    """
    # The worker sees the end of this pipe when the parent is gone, even after kill -9.
    lifeline, held = os.pipe()
    with os.fdopen(held, "wb"):
        # In a new session, Ctrl-C reaches only the parent, which then ends the worker and all its children.
        with open_anew(log) as output, os.fdopen(lifeline, "rb"):
            worker = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=worker_environment(threads) | (extra or {}) | {LIFELINE: str(lifeline)},
                pass_fds=(lifeline, *pass_fds),
                start_new_session=True,
            )
        assert worker.stdin is not None, "it was asked for"
        try:
            # If it has already ended, it reads nothing.
            with suppress(BrokenPipeError), worker.stdin as given:
                given.write(b"" if spec is None else spec.model_dump_json().encode())
            yield worker
        finally:
            end(worker)


def judge(target: int, process: int, ended: Ended, result: Path) -> WorkerRun:
    """What a worker that has ended left at `result`, or why it left nothing."""
    seconds = ended.seconds
    try:
        document: Refused | Sweep | Measured = (
            read_answer(result, Sweep) if process == SWEEP else read_answer(result, Measured)
        )
    except FileNotFoundError:
        return WorkerRun(target, process, seconds, error=f"{how(ended)} and left no result{said(ended.log)}")
    except ValueError:
        return WorkerRun(target, process, seconds, error=f"{how(ended)} and left half a result{said(ended.log)}")
    if isinstance(document, Refused):
        return WorkerRun(target, process, seconds, error=document.message, scope=document.scope, user_error=True)
    if isinstance(document, Sweep):
        return WorkerRun(target, process, seconds, sweep=document)
    return WorkerRun(target, process, seconds, document)


def concerned(plan: Plan, outcome: WorkerRun) -> set[int]:
    """The targets that an error concerns."""
    backend = plan.targets[outcome.target].backend
    return {
        index
        for index, spec in enumerate(plan.targets)
        if index == outcome.target or outcome.scope == RUN or (outcome.scope == BACKEND and spec.backend == backend)
    }


def how(ended: Ended) -> str:
    """How a process ended, as a verb phrase."""
    return f"was killed by signal {-ended.code}" if ended.code < 0 else f"ended with exit code {ended.code}"


def last_words(log: Path) -> str:
    """The last line that a process wrote, as the end of a sentence; empty if it wrote none."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f": {shorten(clean(lines[-1].strip()))}" if lines else ""


def said(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-STDERR_LINES:]
    return "; it said nothing" if not lines else "; its last words:\n" + "\n".join(f"    {line}" for line in lines)


def _expire(worker: subprocess.Popen[bytes], timed_out: threading.Event) -> None:
    timed_out.set()
    end(worker)


def end(worker: subprocess.Popen[bytes]) -> None:
    """Ends the worker and its children, also those that it left behind, and waits until it is gone."""
    if worker.poll() is None:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(worker.pid, signal.SIGTERM)
            worker.wait(GRACE_SECONDS)
    # The group is there for as long as one of them is. Children may ignore SIGTERM.
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
