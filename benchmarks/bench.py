"""`isotrain bench` as a function: plan, run, judge, write. The parent process, which imports no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from .. import UserError
from ..albert_core.terminal.console import new_console, say
from ..albert_core.terminal.text import duration
from .harness.document import RUN, Sweep
from .harness.environment import describe
from .harness.plan import Options, Plan, make_plan
from .harness.runner import SWEEP, WORKER, WorkerRun, run_sweeps, run_workers
from .outcome.build import build_result, result_path, write_result
from .outcome.end_to_end import EndToEnd
from .outcome.model import Bench

VALID, INVALID, FAILED, INTERRUPTED = 0, 1, 2, 130


class Watcher(Protocol):
    """What a run tells whoever watches it."""

    def started(self, target: int, process: int) -> None: ...

    def ended(self, run: WorkerRun) -> None: ...

    def replanned(self, plan: Plan) -> None:
        """The sweeps chose other shapes, or found that a target can't run."""


@dataclass(frozen=True)
class Outcome:
    """A run's result (None: interrupted before anything was complete), where it was written, and the exit code.

    Exit codes: 0 all targets valid, 1 one is not, 2 a process failed, 130 interrupted.
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
    """Measures what `options` names, and writes the result to `out` (a .json file or a folder; default results/).

    An interruption (Ctrl-C, SIGTERM) ends the process that runs and keeps what was complete. `command` starts a
    worker. Raises UserError for options that can't be used, and where every target failed for a reason that the user
    can mend.
    """
    plan = make_plan(options)
    path = result_path(out, datetime.now(UTC)) if write else None
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
        # A comparison without this project's own side is none.
        raise UserError(own[0].error)
    result = build_result(plan, runs, machine, interrupted, sweeps)
    if path is not None:
        write_result(result, path)
    return Outcome(result, path, exit_code(result))


def _after_sweep(plan: Plan, run: WorkerRun, sweeps: dict[int, Sweep]) -> Plan:
    """The plan with the fastest shape that a sweep found, or without a baseline that can't run.

    Raises UserError for what concerns the end-to-end run. A sweep that died leaves the target its first shape: the
    measured process will say what is wrong.
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
    """What a command ends in that has measured `result`."""
    if result.status == "partial":
        return INTERRUPTED
    if result.status == "failed":
        return FAILED
    return VALID if result.valid else INVALID


class PlainWatcher:
    """Lines on stderr, for logs and pipes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.done = 0
        self.began = time.perf_counter_ns()

    def started(self, target: int, process: int) -> None:
        del target, process

    def replanned(self, plan: Plan) -> None:
        self.plan = plan

    def ended(self, run: WorkerRun) -> None:
        self.done += 1
        total = self.plan.processes
        left = (time.perf_counter_ns() - self.began) / 1e9 / self.done * (total - self.done)
        # Why is said once, at the end: by the result, or by the error that ends the run.
        refused = run.user_error and self.plan.targets[run.target].baseline
        ending = "" if run.complete else " can't run" if refused else " FAILED"
        remaining = f", about {duration(left)} left" if self.done < total else ""
        label = _doing(self.plan, run.target, run.process)
        say(f"[{self.done}/{total}] {label}: {run.seconds:.1f} s{remaining}{ending}", err=True)


class BarWatcher:
    """A rich progress bar. It is drawn twice a second: the cores belong to what is measured."""

    def __init__(self, plan: Plan, progress: Any) -> None:
        self.plan, self.progress = plan, progress
        self.task = progress.add_task("starting", total=plan.processes)

    def started(self, target: int, process: int) -> None:
        of = "" if process == SWEEP else f", process {process + 1} of {self.plan.options.processes}"
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
    """What a process does, for whoever watches."""
    spec = plan.targets[target]
    return f"{spec.backend} {spec.kernel}: looking for its best shape" if process == SWEEP else spec.label


@contextmanager
def watcher_for_terminal(plan: Plan) -> Iterator[Watcher]:
    """A bar where stderr is a terminal, lines elsewhere."""
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
    # The estimate looks back over the end-to-end run: processes take tens of seconds each.
    with Progress(
        *columns, console=new_console(stderr=True), refresh_per_second=2, speed_estimate_period=86_400, transient=True
    ) as progress:
        yield BarWatcher(plan, progress)
