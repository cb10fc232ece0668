"""Pairs of processes, one of each checkout, that are alive at once and run their timed blocks in turns."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import Popen

from ... import UserError
from ...albert_core.processes.signals import interrupted_by_signals
from ...albert_core.runs.files import scratch_folder
from ...albert_core.terminal.text import quoted
from ..harness.answer import read_answer
from ..harness.document import Peaks, Refused
from ..harness.plan import Options, Plan
from ..harness.runner import Ended, WorkerRun, concerned, end, judge, last_words, run_process, running
from ..harness.turns import PROTOCOL, Partner
from ..harness.worker import WorkerSpec
from ..outcome.model import BENCH
from .checkout import Checkout
from .side import COMMAND, Described, SideSpec, describe

WORKER = (sys.executable, "-P", "-m", "isotrain.benchmarks.harness.worker")
# How long the threads of a process may go on running after its block: OpenMP's spin before they sleep.
MOST_RESTLESS_SECONDS = 1.0
DESCRIBE_SECONDS = 120.0


@dataclass(frozen=True)
class Side:
    """A checkout as its processes are started. path: a folder that has it under the name isotrain."""

    checkout: Checkout
    path: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": os.pathsep.join([str(self.path), *filter(None, [os.environ.get("PYTHONPATH")])])}


@dataclass(frozen=True)
class PairRun:
    """How a pair of a target ended: a run of each side (None: ended because of the other), in the order before, after.

    restless: blocks after which a process went on running for so long that it disturbed the other's.
    """

    target: int
    pair: int
    seconds: float
    runs: tuple[WorkerRun | None, WorkerRun | None]
    restless: int = 0

    @property
    def failed(self) -> WorkerRun | None:
        return next((run for run in self.runs if run is not None and run.document is None), None)


@contextmanager
def prepared(before: Checkout, after: Checkout, options: Options) -> Iterator[tuple[Side, Side]]:
    """The two sides, where they can be started. Raises UserError for those that can't be measured together."""
    with scratch_folder("isotrain-against") as folder:
        sides = []
        for name, checkout in (("before", before), ("after", after)):
            path = folder / name
            path.mkdir()
            (path / "isotrain").symlink_to(checkout.root)
            sides.append(Side(checkout, path))
        _check_alike(sides[0], options, folder)
        yield sides[0], sides[1]


def _check_alike(side: Side, options: Options, folder: Path) -> None:
    """Raises UserError where the workers of `side` speak, write or measure something else than those that run here."""
    label = side.checkout.label
    result = folder / "side.json"
    spec = SideSpec(options=options, result=str(result))
    ended = run_process(COMMAND, spec, folder / "side.log", options.threads, DESCRIBE_SECONDS, side.environment)
    try:
        found = read_answer(result, Described)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{label} doesn't start{last_words(ended.log)}") from error
    if isinstance(found, Refused):
        raise UserError(f"{label} refuses what is to be measured: {found.message}")
    wanted = describe(spec)
    told = (
        ("root", found.root, str(side.checkout.root.resolve())),
        ("block protocol", found.protocol, PROTOCOL),
        ("result schema", found.results, BENCH),
        *((f"config.{key}", found.config.get(key), wanted.config.get(key)) for key in found.config | wanted.config),
        ("list of targets", found.targets, wanted.targets),
    )
    for what, theirs, ours in told:
        if theirs != ours:
            other = f"({quoted(str(theirs))}, here {quoted(str(ours))})"
            raise UserError(f"{label} has another {what} {other}; give a newer revision")


def run_pairs(plan: Plan, sides: tuple[Side, Side], started: Callable[[int, int], None]) -> Iterator[PairRun]:
    """Runs a pair of processes for each entry of the plan's order; `started(target, pair)` before each.

    A target with a failed process is not started again. KeyboardInterrupt ends the processes that run and is raised.
    """
    failed: set[int] = set()
    peaks: dict[str, list[Peaks]] = {spec.backend: [] for spec in plan.targets}
    with scratch_folder("isotrain-bench") as folder, interrupted_by_signals():
        for target, pair in plan.order:
            if target in failed:
                continue
            started(target, pair)
            known = peaks[plan.targets[target].backend]
            ended = _run_pair(plan, target, pair, sides, folder, known)
            known += [run.document.peaks for run in ended.runs if run is not None and run.document is not None]
            if ended.failed is not None:
                failed |= concerned(plan, ended.failed)
            yield ended


@dataclass
class _Member:
    """One process of a pair. place: 0 before, 1 after. steps, blocks: what it would run alone."""

    place: int
    worker: Popen[bytes]
    partner: Partner
    result: Path
    log: Path
    start: int
    steps: int = 0
    blocks: int = 0

    def outcome(self, target: int, pair: int) -> WorkerRun:
        """Waits for its end."""
        code = self.worker.wait()
        ended = Ended(code, (time.perf_counter_ns() - self.start) / 1e9, False, self.log)
        return judge(target, pair, ended, self.result)


def _run_pair(
    plan: Plan, target: int, pair: int, sides: tuple[Side, Side], folder: Path, known_peaks: Sequence[Peaks]
) -> PairRun:
    """Starts both, lets one after the other warm up, lets them take turns, and lets one after the other end."""
    begin = time.perf_counter_ns()
    members: list[_Member] = []
    runs: dict[int, WorkerRun] = {}
    restless = 0
    with ExitStack() as stack:
        timed_out = stack.enter_context(_limited(members, 2.0 * plan.options.time_limit))
        try:
            # The order of the start alternates from pair to pair.
            for place in (0, 1) if pair % 2 == 0 else (1, 0):
                partner = stack.enter_context(Partner())
                name = f"{target}-{pair}-{place}"
                spec = WorkerSpec(
                    options=plan.options,
                    target=plan.targets[target],
                    candidates=[],
                    process=pair,
                    known_peaks=list(known_peaks),
                    turns=partner.ends,
                    result=str(folder / f"{name}.json"),
                )
                log, environment = folder / f"{name}.log", sides[place].environment
                start = time.perf_counter_ns()
                worker = stack.enter_context(
                    running(WORKER, spec, log, plan.options.threads, environment, partner.ends)
                )
                partner.inherited()
                members.append(_Member(place, worker, partner, Path(spec.result), log, start))
            for member in members:
                member.partner.wait()
            for member in members:
                member.steps, member.blocks = member.partner.warm_up()
                _comes_to_rest(member.worker.pid)
            restless = _take_turns(members)
            peaks = ""
            for member in members:
                member.partner.finish(peaks)
                ended = runs[member.place] = member.outcome(target, pair)
                peaks = "" if ended.document is None else ended.document.peaks.model_dump_json()
        except EOFError:
            for member in members:
                if member.partner.lost:
                    found = member.outcome(target, pair)
                    runs[member.place] = (
                        found
                        if found.document is None
                        else replace(found, document=None, error="ended before its blocks were run")
                    )
    seconds = (time.perf_counter_ns() - begin) / 1e9
    if timed_out.is_set():
        error = f"took longer than the time limit of {2.0 * plan.options.time_limit:g} s for a pair and was ended"
        runs = {member.place: WorkerRun(target, pair, seconds, error=error) for member in members}
    return PairRun(target, pair, seconds, (runs.get(0), runs.get(1)), restless)


def _take_turns(members: Sequence[_Member]) -> int:
    """Runs the blocks of both, in the order A B B A; returns after how many a process did not come to rest."""
    steps, blocks = max(member.steps for member in members), min(member.blocks for member in members)
    restless = 0
    for member in members:
        member.partner.settle(steps, blocks)
        _comes_to_rest(member.worker.pid)
    for block in range(blocks):
        for member in members if block % 2 == 0 else reversed(members):
            member.partner.run_block()
            restless += not _comes_to_rest(member.worker.pid)
    return restless


def _comes_to_rest(process: int) -> bool:
    """Waits until no thread of the process runs or wants to run; whether that was soon."""
    deadline = time.monotonic() + MOST_RESTLESS_SECONDS
    while any(_runs(task) for task in Path(f"/proc/{process}/task").glob("*/stat")):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def _runs(task: Path) -> bool:
    try:
        # The name in parentheses may contain spaces.
        return task.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] == "R"
    except (OSError, IndexError):
        return False


@contextmanager
def _limited(members: Sequence[_Member], seconds: float) -> Iterator[threading.Event]:
    """Ends all members after so many seconds; whether it did."""
    timed_out = threading.Event()

    def expire() -> None:
        timed_out.set()
        for member in members:
            end(member.worker)

    limit = threading.Timer(seconds, expire)
    limit.start()
    try:
        yield timed_out
    finally:
        limit.cancel()
