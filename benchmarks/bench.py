"""`isotrain bench` as a function: plan, run, judge, write. It runs in the parent process, which imports no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from .. import UserError
from ..albert_core.output.profile import MOST_PROFILED
from ..albert_core.runs.files import make_folders
from ..albert_core.terminal.console import new_console, say
from ..albert_core.terminal.text import duration
from ..kernels.names import check_range
from .harness.document import RUN, Sweep
from .harness.environment import describe
from .harness.plan import Options, Plan, make_plan
from .harness.runner import SWEEP, WORKER, WorkerRun, run_sweeps, run_workers
from .outcome.build import build_result, result_path, write_result
from .outcome.end_to_end import EndToEnd
from .outcome.model import Bench

VALID, INVALID, FAILED, INTERRUPTED = 0, 1, 2, 130


class Watcher(Protocol):
    """Is told about the progress of a run."""

    def started(self, target: int, process: int) -> None: ...

    def ended(self, run: WorkerRun) -> None: ...

    def replanned(self, plan: Plan) -> None:
        """Called if sweeps have chosen other shapes, or a target can't run."""


@dataclass(frozen=True)
class Outcome:
    """A run's result, its file and the exit code.

    Attributes:
        result: None if the run was interrupted before anything was complete.
        code: 0 if all targets are valid, 1 if one is not, 2 if a process failed, 130 if interrupted.
    """

    result: Bench | EndToEnd | None
    path: Path | None
    code: int


def run_bench(
    options: Options,
    *,
    out: Path | None = None,
    write: bool = True,
    watcher: Watcher | None = None,
    command: Sequence[str] = WORKER,
) -> Outcome:
    """Measures what `options` names, and writes the result.

    An interruption (Ctrl-C, SIGTERM) ends the running process and keeps what was complete.

    Args:
        out: A .json file or a folder; the default is results/.
        command: Starts a worker.

    Raises:
        UserError: The options can't be used, or every target failed for a reason that the user can fix.
    """
    path = result_path(out, datetime.now(UTC)) if write else None
    plan = make_plan(_with_traces(options, path))
    watcher = watcher or PlainWatcher(plan)
    machine = describe()
    runs: list[WorkerRun] = []
    sweeps: dict[int, Sweep] = {}
    interrupted = False
    try:
        for run in run_sweeps(plan, watcher.started, command):
            plan = _after_sweep(plan, run, sweeps)
            watcher.ended(run)
        if sweeps or plan.unavailable:
            watcher.replanned(plan)
        for run in run_workers(plan, watcher.started, command):
            runs.append(run)
            watcher.ended(run)
    except KeyboardInterrupt:
        interrupted = True
    complete = any(run.document is not None for run in runs)
    if interrupted and not complete:
        return Outcome(None, None, INTERRUPTED)
    own = [run for run in runs if not plan.targets[run.target].baseline]
    if own and all(run.user_error for run in own) and (not complete or plan.options.vs):
        # Without this project's own side there is nothing to compare.
        raise UserError(own[0].error)
    result = build_result(plan, runs, machine, interrupted, sweeps)
    if path is not None:
        write_result(result, path)
    return Outcome(result, path, exit_code(result))


def _with_traces(options: Options, path: Path | None) -> Options:
    """The options with the folder of the traces, beside the result, if steps are profiled."""
    if not options.profile:
        return options
    check_range("--profile", options.profile, 1, MOST_PROFILED)
    if path is None:
        raise UserError("--profile writes traces beside the result, and none is written; give --out")
    traces = path.absolute().with_name(f"{path.stem}-traces")
    make_folders(traces, "--profile")
    return replace(options, traces=str(traces))


def _after_sweep(plan: Plan, run: WorkerRun, sweeps: dict[int, Sweep]) -> Plan:
    """The plan with the fastest shape that a sweep found, or without a baseline that can't run.

    If a sweep died, the target keeps its first shape, and the measuring process will report the fault. Raises UserError
    for errors that concern all targets.
    """
    if run.sweep is not None:
        sweeps[run.target] = run.sweep
        rates = [one.samples_per_second or 0.0 for one in run.sweep.sweep]
        return plan.settled(run.target, plan.candidates[run.target][rates.index(max(rates))])
    if run.user_error and run.scope == RUN:
        raise UserError(run.error)
    if run.user_error and plan.targets[run.target].baseline:
        return plan.without(run.target, run.error)
    return plan


def exit_code(result: Bench | EndToEnd) -> int:
    """The exit code of a command that has measured `result`."""
    if result.status == "partial":
        return INTERRUPTED
    if result.status == "failed":
        return FAILED
    return VALID if result.valid else INVALID


class PlainWatcher:
    """Writes lines to stderr, for logs and pipes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.done = 0
        self.began = time.perf_counter_ns()

    def started(self, target: int, process: int) -> None:
        del target, process
        # No earlier: nothing stands before the one line about an input that is wrong.
        if self.done == 0:
            say(self.plan.outlook, err=True)

    def replanned(self, plan: Plan) -> None:
        self.plan = plan

    def ended(self, run: WorkerRun) -> None:
        self.done += 1
        total = self.plan.processes
        left = (time.perf_counter_ns() - self.began) / 1e9 / self.done * (total - self.done)
        # The reason comes once, at the end: in the result, or in the error that ends the run.
        refused = run.user_error and self.plan.targets[run.target].baseline
        ending = "" if run.complete else " can't run" if refused else " FAILED"
        remaining = f", about {duration(left)} left" if self.done < total else ""
        label = _doing(self.plan, run.target, run.process)
        say(f"[{self.done}/{total}] {label}: {run.seconds:.1f} s{remaining}{ending}", err=True)


class BarWatcher:
    """A rich progress bar. It is drawn only twice a second, to leave the cores to the measurement."""

    def __init__(self, plan: Plan, progress: Any) -> None:
        self.plan, self.progress = plan, progress
        self.task = progress.add_task("starting", total=plan.processes)

    def started(self, target: int, process: int) -> None:
        if self.progress.tasks[self.task].completed == 0:
            self.progress.console.print(self.plan.outlook, markup=False, highlight=False)
        one_of = "pair" if self.plan.paired else "process"
        of = "" if process == SWEEP else f", {one_of} {process + 1} of {self.plan.options.processes}"
        self.progress.update(self.task, description=_doing(self.plan, target, process) + of)

    def replanned(self, plan: Plan) -> None:
        self.plan = plan
        self.progress.update(self.task, total=plan.processes)

    def ended(self, run: WorkerRun) -> None:
        if not run.complete:
            what = _doing(self.plan, run.target, run.process)
            self.progress.console.print(f"{what}: no result", style="red")
        self.progress.advance(self.task)


def _doing(plan: Plan, target: int, process: int) -> str:
    """What a process does, in words."""
    spec = plan.targets[target]
    named = " ".join(filter(None, (spec.backend, spec.kernel, spec.dtype)))
    return f"{named}: looking for its best shape" if process == SWEEP else spec.label


@contextmanager
def watcher_for_terminal(plan: Plan) -> Iterator[Watcher]:
    """A progress bar if stderr is a terminal, else lines."""
    if not sys.stderr.isatty():
        yield PlainWatcher(plan)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA", markup=False),
        TimeRemainingColumn(),
    )
    # The estimate uses the whole run so far, since processes take tens of seconds each.
    with Progress(
        *columns, console=new_console(stderr=True), refresh_per_second=2, speed_estimate_period=86_400, transient=True
    ) as progress:
        yield BarWatcher(plan, progress)
