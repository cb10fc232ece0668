"""What can be gated of a result, each with its own threshold and statistics (rule 8). Of all of it, less is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ... import UserError
from ...kernels.names import check_name
from ..harness.document import Interval
from ..harness.extrapolate import total_ratio
from ..harness.plan import FULL_BLOCKS, FULL_PROCESSES
from ..harness.statistics import Samples, ratio_interval
from ..outcome.end_to_end import Side, WholeProcess
from ..outcome.limits import speed_ratio
from ..outcome.model import MeasuredTarget

SEED = 23
Entry = MeasuredTarget | Side
SPEED = "speed"


@dataclass(frozen=True)
class Metric:
    """One amount of an entry.

    gate: the smallest rise that counts, as a share, on a dedicated machine and (`shared`) on one that others use too.
    samples: values by process, one a block or one a process; None where the entry has none.
    """

    name: str
    meaning: str
    gate: float
    shared: float
    samples: Callable[[Entry], Samples | None]

    def threshold(self, contended: bool) -> float:
        return self.shared if contended else self.gate

    def of(self, entry: object) -> bool:
        """Whether an entry has this figure: a forward pass has no loss, a machine without a counter no energy."""
        found = self.samples(entry) if isinstance(entry, Entry) else [[]]
        return bool(found and all(found))

    def cost(self, old: Entry, new: Entry) -> Interval | str:
        """After over before with its 95 % interval, or why there is none."""
        if self.name == SPEED and isinstance(old, Side) and isinstance(new, Side):
            return total_ratio(new.sampled, old.sampled, SEED)
        if self.name == SPEED and isinstance(old, MeasuredTarget) and isinstance(new, MeasuredTarget):
            return speed_ratio(old, new, SEED).rate(1.0)
        for which, entry in (("before", old), ("after", new)):
            found = self.samples(entry) or []
            if not self.of(entry) or not all(0.0 < value < math.inf for row in found for value in row):
                return f"no {self.meaning} {which}"
        return ratio_interval(self.samples(new) or (), self.samples(old) or (), SEED)


def _time(entry: Entry) -> Samples | None:
    if isinstance(entry, MeasuredTarget):
        return entry.text_seconds
    return [[process.sampled.total] for process in entry.processes]


def _memory(entry: Entry) -> Samples | None:
    if isinstance(entry, MeasuredTarget):
        return [[float(process.memory.peak_bytes)] for process in entry.processes]
    return [[float(process.peak_bytes)] for process in entry.processes]


def _phases(*names: str) -> Callable[[Entry], Samples | None]:
    def samples(entry: Entry) -> Samples | None:
        if not isinstance(entry, MeasuredTarget):
            return None
        return [[sum(process.phases.get(name, 0.0) for name in names)] for process in entry.processes]

    return samples


def _energy(entry: Entry) -> Samples | None:
    if not isinstance(entry, MeasuredTarget):
        runs = [process.energy.joules for process in entry.processes if isinstance(process, WholeProcess)]
        return [[joules] for joules in runs if joules is not None] if None not in runs else None
    return [
        [joules / process.steps_per_block / entry.work.samples for joules in process.energy.block_joules]
        for process in entry.processes
    ]


def _loss(entry: Entry) -> Samples | None:
    if isinstance(entry, MeasuredTarget):
        return [[sum(process.losses) / len(process.losses)] for process in entry.processes if process.losses]
    found = [process.metrics.get("eval/loss") for process in entry.processes if isinstance(process, WholeProcess)]
    return [[loss] for loss in found if loss is not None]


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(SPEED, "time", 0.03, 0.10, _time),
        Metric("memory", "peak memory", 0.05, 0.05, _memory),
        Metric("first_step", "time of the first step", 0.25, 0.50, _phases("first_step")),
        Metric("load", "time of loading", 0.25, 0.50, _phases("open", "load", "data", "prepare")),
        Metric("energy", "energy", 0.05, 0.10, _energy),
        Metric("loss", "loss", 0.01, 0.01, _loss),
    )
}


def chosen(names: Iterable[str], gates: Iterable[str]) -> list[tuple[Metric, float | None]]:
    """The metrics of --what, each with its gate of --gate or None. Raises UserError for what names none of them."""
    names = tuple(dict.fromkeys(names)) or (SPEED,)
    for name in names:
        check_name("--what", name, METRICS)
    shares: dict[str, float] = {}
    for text in gates:
        name, _, share = text.rpartition("=")
        if name and name not in names:
            check_name("--gate", name, METRICS)
            raise UserError(f"--gate {text!r} is for {name}, which isn't compared; add --what {name}")
        shares |= {one: parse_share(share) for one in ((name,) if name else names)}
    return [(METRICS[name], shares.get(name)) for name in names]


def parse_share(text: str) -> float:
    """A share from "5%" or "0.05". Raises UserError for anything that is not between 0 and 1."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100.0 if percent else 1.0)
    except ValueError:
        share = -1.0
    # Not `share < 0`: NaN must fail too.
    if not 0.0 <= share < 1.0:
        raise UserError(f"--gate {text!r} is no share; allowed is 0% to 99%, such as 5% or memory=2%")
    return share


def lack(old: Entry, new: Entry) -> str:
    """What two entries need to decide anything, and one of them has not."""
    fewest = min(len(old.processes), len(new.processes))
    if not isinstance(old, MeasuredTarget) or not isinstance(new, MeasuredTarget):
        return f"fewer than {FULL_PROCESSES} processes" if fewest < FULL_PROCESSES else ""
    blocks = min(len(entry.processes[0].step_seconds) for entry in (old, new))
    too_few = fewest < FULL_PROCESSES or blocks < FULL_BLOCKS
    return f"fewer than {FULL_PROCESSES} processes x {FULL_BLOCKS} blocks" if too_few else ""
