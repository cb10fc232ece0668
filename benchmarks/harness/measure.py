"""The measuring core: one target, in one process, from its first step to its last timed block.

It knows no device and no model: a step, a fence, a compile counter and a clock are handed in, so that its own tests
run it on faulty devices with a virtual clock. Rules 1, 2, 4, 5 and 9 (collector) of measuring live here.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from ...kernels.words import count
from .statistics import alternation, drift, growth, is_steady, scatter
from .turns import ALONE, Turns

# Rule 1: nanoseconds of a monotonic clock; `time.perf_counter_ns`, or a virtual one in tests.
Clock = Callable[[], int]
Meter = Callable[[], float | None]

# Rule 4: how long a warm-up lasts at least, and how long it must have compiled nothing.
LEAST_WARMUP_STEPS = 10
STEADY_COMPILE_STEPS = 5
MOST_STEPS_PER_BLOCK = 100_000
# A block is at least this long (ns). One shorter than the second that scatters by more than the third is lengthened.
# Either may make the blocks take this many times as long as planned.
LEAST_BLOCK, LONG_ENOUGH_BLOCK, LARGEST_SCATTER = 20e6, 500e6, 0.05
LARGEST_EXTENSION = 4.0
# The share of a block's time that may still be outstanding when its fence has returned.
LARGEST_LATE_SHARE = 0.1
# Seconds before a block's results are read for the last time: as long as a step takes, within these limits.
LEAST_PAUSE, LONGEST_PAUSE = 0.002, 0.1


class Target(Protocol):
    """What is measured, as the core sees it."""

    @property
    def classes(self) -> Sequence[int]:
        """One entry a batch of the list; batches with equal entries cost the same."""

    def begin(self) -> None:
        """Forgets the results of the steps so far."""

    def step(self, index: int) -> None:
        """Runs the step of the list's batch `index`, without waiting for it."""

    def fence(self) -> None:
        """Returns only when the results of all steps since `begin` exist.

        Those are the logits of every forward pass, but of training steps the *updated parameters*: on a lazy device,
        reading the loss forces neither the gradients nor the update (rule 2).
        """

    def read(self) -> list[str]:
        """Fetches the results since `begin` to the host and returns their problems. This is never timed as work.

        Results that differ from those of an earlier reading since `begin` are wrong.
        """

    def compile_count(self) -> int:
        """How many compilations the device has done so far."""


@dataclass(frozen=True)
class Budget:
    """How much is measured: `blocks` timed blocks in about `seconds`, after at most `warmup_seconds` of warm-up.

    Where even the smallest blocks would take more than twice `seconds`, there may be fewer, down to `least_blocks`
    (None: never fewer).
    """

    blocks: int
    seconds: float
    warmup_seconds: float
    least_blocks: int | None = None


@dataclass(frozen=True)
class WarmUp:
    """The untimed steps after the first: how many, how long (ns), whether they ended steady, and what compiled."""

    steps: int
    nanoseconds: int
    steady: bool
    compiles: int
    compile_nanoseconds: int


@dataclass(frozen=True)
class Measurement:
    """One process's figures of one target, in ns. `reasons` make it invalid, `warnings` qualify it.

    joules: the energy of each block, or nothing where there is no counter. cpu_blocks: the CPU time (ns) of all threads
    of the process in each block.
    """

    first_step: int
    warm_up: WarmUp
    steps_per_block: int
    blocks: tuple[int, ...]
    compiles: int
    joules: tuple[float, ...] = ()
    cpu_blocks: tuple[int, ...] = ()
    growth: float | None = None
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def step_seconds(self) -> list[float]:
        """Mean seconds a step, one value a block."""
        return [block / self.steps_per_block / 1e9 for block in self.blocks]

    @property
    def cpu_step_seconds(self) -> list[float]:
        """Mean CPU seconds a step, one value a block."""
        return [block / self.steps_per_block / 1e9 for block in self.cpu_blocks]

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of each phase (rule 3). Later compiles are a part of the warm-up: the steps that compiled."""
        return {
            "first_step": self.first_step / 1e9,
            "warm_up": self.warm_up.nanoseconds / 1e9,
            "later_compiles": self.warm_up.compile_nanoseconds / 1e9,
            "steady": sum(self.blocks) / 1e9,
        }


class _WatchedClock:
    """A clock, and whether it ever went backwards between two looks at it."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._last, self.went_back = clock, clock(), False

    def __call__(self) -> int:
        now = self._clock()
        self.went_back |= now < self._last
        self._last = now
        return now


@dataclass
class _Findings:
    """What the timed blocks showed beside their times."""

    problems: list[str] = field(default_factory=list)
    compiling_blocks: list[int] = field(default_factory=list)
    late_blocks: list[int] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    cpu_blocks: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)


def measure(
    target: Target,
    budget: Budget,
    clock: Clock = time.perf_counter_ns,
    joules: Meter = lambda: None,
    turns: Turns = ALONE,
    cpu_clock: Clock = time.process_time_ns,
    held: Callable[[], int] = lambda: 0,
) -> Measurement:
    """Measures `target`: first step, warm-up to the steady state, then timed blocks of k steps with one fence each.

    k is the largest number that fits the budget; at least one step where all batches cost the same, else at least one
    pass over the list, so that every block does the same work. A block starts at the list's first batch. Blocks that
    are short against their noise are timed once more with a larger k, and only those count. `joules` reads
    a counter of energy, and `held` the bytes in use, outside the timed region. `turns` alternate with another process
    block by block.
    """
    watched = _WatchedClock(clock)
    mixed = len(set(target.classes)) > 1
    turns.begin()
    first_step = _timed_step(target, 0, watched)
    warm_up, problems, typical = _warm_up(target, budget, watched)

    unit = len(target.classes) if mixed else 1
    unit_time = max(1, sum(typical[label] for label in target.classes) if mixed else typical[target.classes[0]])
    share = budget.seconds * 1e9 / budget.blocks
    block_time = max(share, min(LEAST_BLOCK, LARGEST_EXTENSION * share))
    steps = min(max(1, int(block_time / unit_time)), max(1, MOST_STEPS_PER_BLOCK // unit)) * unit

    affordable = int(2.0 * block_time * budget.blocks / (unit_time * steps / unit))
    count = max(min(budget.blocks, affordable), budget.least_blocks or budget.blocks)
    steps, count = turns.agree(steps, count)
    compiles_before = target.compile_count()
    blocks, findings = _timed_blocks(target, count, steps, watched, joules, turns, cpu_clock, held)
    problems += findings.problems
    factor = 1 if findings.compiling_blocks or turns.shared else _lengthening(blocks, steps, budget)
    warnings = []
    if factor > 1:
        warnings.append(
            f"blocks of {median(blocks) / 1e6:.0f} ms scattered by {scatter(blocks):.0%}: timed again {factor} times "
            "as long"
        )
        steps, block_time = factor * steps, factor * block_time
        blocks, findings = _timed_blocks(target, count, steps, watched, joules, turns, cpu_clock, held)
        problems += findings.problems
    turns.finish()
    reasons = [*dict.fromkeys(problems)]
    if findings.compiling_blocks:
        compiles = target.compile_count() - compiles_before
        reasons.append(
            f"{compiles} compilations inside the timed region (blocks {_listed(findings.compiling_blocks)}): the time "
            "measured is the compiler's"
        )
    if 2 * len(findings.late_blocks) > len(blocks):
        reasons.append(
            f"the fence returned before the work was done (blocks {_listed(findings.late_blocks)} left more than "
            f"{LARGEST_LATE_SHARE:.0%} of their time outstanding)"
        )
    grown = growth(findings.held, steps)
    if grown is not None:
        warnings.append(f"memory grows by {grown / 1e6:.2g} MB a step")
    if min(blocks) <= 0 or watched.went_back:
        reasons.append("the clock stood still or went backwards: its times mean nothing")
    return Measurement(
        first_step=first_step,
        warm_up=warm_up,
        steps_per_block=steps,
        blocks=tuple(blocks),
        compiles=target.compile_count(),
        joules=tuple(findings.joules),
        cpu_blocks=tuple(findings.cpu_blocks),
        growth=grown,
        reasons=tuple(reasons),
        warnings=(*warnings, *_qualifications(warm_up, budget, blocks, block_time * budget.blocks)),
    )


def _lengthening(blocks: Sequence[int], steps: int, budget: Budget) -> int:
    """How many times as long blocks should be to scatter less; 1 where they are long enough, or scatter little."""
    if min(blocks) <= 0 or median(blocks) >= LONG_ENOUGH_BLOCK:
        return 1
    # Longer blocks would hide a drift and two speeds, which are no noise.
    if drift(blocks) is not None or alternation(blocks) is not None:
        return 1
    # The noise of independent moments falls with the square root of the time.
    wanted = (scatter(blocks) / LARGEST_SCATTER) ** 2
    left = LARGEST_EXTENSION * budget.seconds * 1e9 / sum(blocks) - 1.0
    factor = min(wanted, left, LONG_ENOUGH_BLOCK / median(blocks), MOST_STEPS_PER_BLOCK / steps)
    return max(1, int(factor))


def _timed_step(target: Target, index: int, clock: Clock) -> int:
    target.begin()
    start = clock()
    target.step(index)
    target.fence()
    return clock() - start


def _warm_up(target: Target, budget: Budget, clock: Clock) -> tuple[WarmUp, list[str], dict[int, int]]:
    """Steps until steady or out of budget (rule 4). Where batches differ, each of the list runs before the first block.

    Returns also what reading the values found, and the usual time (ns) of each class of batches.
    """
    size = len(target.classes)
    mixed = len(set(target.classes)) > 1
    window = max(LEAST_WARMUP_STEPS, 2 * size if mixed else 0)
    least = size if mixed else 1
    times: list[int] = []
    labels: list[int] = []
    compiled: list[bool] = []
    problems: list[str] = []
    begin = clock()
    while True:
        index = (len(times) + 1) % size
        before = target.compile_count()
        times.append(_timed_step(target, index, clock))
        labels.append(target.classes[index])
        compiled.append(target.compile_count() != before)
        problems += target.read()
        spent = clock() - begin
        steady = (
            len(times) >= window
            and not any(compiled[-STEADY_COMPILE_STEPS:])
            and min(times[-window:]) > 0
            and is_steady(times[-window:], labels[-window:])
        )
        out_of_budget = spent >= budget.warmup_seconds * 1e9 or len(times) >= MOST_STEPS_PER_BLOCK
        if steady or (len(times) >= least and out_of_budget):
            break
    compile_time = sum(taken for taken, moved in zip(times, compiled, strict=True) if moved)
    warm_up = WarmUp(len(times), spent, steady, sum(compiled), compile_time)
    recent: dict[int, list[int]] = {}
    for label, taken in zip(labels[-window:], times[-window:], strict=True):
        recent.setdefault(label, []).append(taken)
    return warm_up, problems, {label: int(median(values)) for label, values in recent.items()}


def _timed_blocks(
    target: Target,
    count: int,
    steps: int,
    clock: Clock,
    joules: Meter,
    turns: Turns,
    cpu_clock: Clock,
    held: Callable[[], int],
) -> tuple[list[int], _Findings]:
    blocks: list[int] = []
    findings = _Findings()
    size = len(target.classes)
    same_cost = len(set(target.classes)) == 1
    position = 0
    with _collector_frozen():
        for block in range(count):
            with turns.block():
                target.fence()
                target.begin()
                compiles = target.compile_count()
                energy, cpu = joules(), cpu_clock()
                start = clock()
                for step in range(position, position + steps):
                    target.step(step % size)
                target.fence()
                stop = clock()
                findings.cpu_blocks.append(cpu_clock() - cpu)
                used = joules()
                if energy is not None and used is not None:
                    findings.joules.append(used - energy)
                blocks.append(stop - start)
                if target.compile_count() != compiles:
                    # Rule 5: the time of this block is the compiler's.
                    findings.compiling_blocks.append(block)
                pause = min(max((stop - start) / steps / 1e9, LEAST_PAUSE), LONGEST_PAUSE)
                problems, late = _read_again(target, clock, pause)
                findings.problems += problems
                if late > LARGEST_LATE_SHARE * (stop - start):
                    findings.late_blocks.append(block)
                findings.held.append(held())
            if same_cost:
                position += steps
    return blocks, findings


def _read_again(target: Target, clock: Clock, pause: float) -> tuple[list[str], int]:
    """What is wrong with the values, and how long (ns) the first reading had to wait for them.

    The second reading of the same values waits for nothing: what the first took beyond it was work the fence should
    have waited for. The third comes after a pause of so many seconds: values that were read too early have changed.
    """
    start = clock()
    problems = target.read()
    middle = clock()
    problems += target.read()
    late = (middle - start) - (clock() - middle)
    time.sleep(pause)
    return problems + target.read(), late


@contextmanager
def _collector_frozen() -> Iterator[None]:
    """Rule 9: no garbage collection inside, for a collection of millions of objects is no part of a step."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def _qualifications(warm_up: WarmUp, budget: Budget, blocks: Sequence[int], planned: float) -> Iterator[str]:
    if not warm_up.steady:
        steps = count(warm_up.steps, "step")
        yield f"warm-up cut by budget after {steps}, {warm_up.nanoseconds / 1e9:.1f} s: not seen steady"
    if len(blocks) < budget.blocks:
        yield f"{count(len(blocks), 'block')} instead of {budget.blocks}: one takes {max(blocks) / 1e9:.1f} s"
    if sum(blocks) > 2.0 * planned:
        yield f"the timed blocks took {sum(blocks) / 1e9:.1f} s, more than the {budget.seconds:g} s planned"


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:5])
    return shown if len(numbers) <= 5 else f"{shown}, ... ({len(numbers)} in all)"
