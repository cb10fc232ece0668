"""The columns of a result's tables: what each shows of a target that has figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Generic, Protocol, TypeVar

from ...albert_core.terminal.text import figure
from ..harness.document import Interval, Work
from ..harness.plan import CACHED
from ..outcome.model import Energy, MeasuredTarget, Rates, Roofline, Share, StepSeconds

Entry = TypeVar("Entry", contravariant=True)


@dataclass(frozen=True)
class Column(Generic[Entry]):
    """One column: its header, what it shows of an entry with figures, and whether a narrow terminal has it too."""

    header: str
    cell: Callable[[Entry], str]
    narrow: bool = False


class Placed(Protocol):
    """What the columns of rates and limits read: a measured target, or a side of an end-to-end run."""

    @property
    def figures(self) -> Rates: ...

    @property
    def share_of_peak(self) -> Share | None: ...

    @property
    def roofline(self) -> Roofline | None: ...

    @property
    def energy(self) -> Energy: ...

    @property
    def work(self) -> Work: ...


def rate(of: Callable[[Rates], Interval]) -> Callable[[Placed], str]:
    return lambda entry: figure(of(entry.figures).median)


def _tokens(of: Callable[[Rates], Interval]) -> Callable[[MeasuredTarget], str]:
    """A rate of tokens; a step on cached features computes none."""
    return lambda target: "cached" if target.layout == CACHED else rate(of)(target)


def _milliseconds(of: Callable[[StepSeconds], float | None]) -> Callable[[MeasuredTarget], str]:
    def cell(target: MeasuredTarget) -> str:
        seconds = of(target.figures.step_seconds)
        return "n < 100" if seconds is None else figure(seconds * 1e3)

    return cell


def share(of: Callable[[Share], float | None]) -> Callable[[Placed], str]:
    def cell(entry: Placed) -> str:
        value = None if entry.share_of_peak is None else of(entry.share_of_peak)
        return "n/a" if value is None else f"{value:.1%}"

    return cell


def _phase(*names: str) -> Callable[[MeasuredTarget], str]:
    return lambda target: figure(sum(target.phases[name].median for name in names))


def _ratio(target: MeasuredTarget) -> str:
    return f"{target.relative.median:.2f}x" if target.relative else "1"


def _warm_up(target: MeasuredTarget) -> str:
    steps = median(process.warm_up.steps for process in target.processes)
    return f"{_phase('warm_up')(target)} ({steps:.0f})"


SAMPLES = Column[Placed]("samples/s", rate(lambda rates: rates.samples_per_second), narrow=True)
MODEL_TFLOPS = Column[Placed]("model\nTFLOP/s", rate(lambda rates: rates.model_tflops), narrow=True)
HARDWARE_TFLOPS = Column[Placed]("hardware\nTFLOP/s", rate(lambda rates: rates.hardware_tflops), narrow=True)
MODEL_SHARE = Column[Placed]("of\npeak", share(lambda of: of.model), narrow=True)
HARDWARE_SHARE = Column[Placed]("of\npeak", share(lambda of: of.hardware), narrow=True)
UNIT_SHARE = Column[Placed]("of\nunit", share(lambda of: of.unit), narrow=True)
INTERVAL = Column[Placed]("95 % interval", lambda entry: entry.figures.samples_per_second.words(), narrow=True)


def throughput_columns(has_p99: bool) -> list[Column[MeasuredTarget]]:
    return [
        SAMPLES,
        INTERVAL,
        Column("speed vs\nfirst", _ratio),
        Column("real\ntokens/s", _tokens(lambda rates: rates.real_tokens_per_second)),
        Column("step\np50 ms", _milliseconds(lambda step: step.p50), narrow=True),
        Column("step\np90 ms", _milliseconds(lambda step: step.p90)),
        *([Column("step\np99 ms", _milliseconds(lambda step: step.p99))] if has_p99 else []),
        MODEL_TFLOPS,
        MODEL_SHARE,
    ]


PHASE_COLUMNS: tuple[Column[MeasuredTarget], ...] = (
    Column("computed\ntokens/s", _tokens(lambda rates: rates.padded_tokens_per_second)),
    HARDWARE_TFLOPS,
    HARDWARE_SHARE,
    Column("import\ns", _phase("import")),
    Column("load\ns", _phase("open", "load", "data", "prepare"), narrow=True),
    Column("first\nstep s", _phase("first_step"), narrow=True),
    Column("warm-up s\n(steps)", _warm_up, narrow=True),
    Column("compiles\nin it s", _phase("later_compiles")),
    Column("steady s\n(n)", lambda target: f"{_phase('steady')(target)} ({target.n})"),
    Column("peak\nMiB", lambda target: figure(target.memory.peak_bytes / 2**20), narrow=True),
)


def _roof(text: Callable[[Roofline], str]) -> Callable[[Placed], str]:
    """A cell of the entry's place under the roof; without a peak of the device it has none."""
    return lambda entry: "none" if entry.roofline is None else text(entry.roofline)


def _joules(entry: Placed) -> str:
    joules = entry.energy.joules_per_sample
    return "unavailable" if joules is None else f"{figure(joules.median)} ({joules.words()})"


ROOF_COLUMNS: tuple[Column[Placed], ...] = (
    Column("moved\nMB/step", lambda entry: figure(entry.work.moved_bytes / 1e6)),
    Column("FLOP\nper byte", _roof(lambda roof: figure(roof.intensity_flop_per_byte)), narrow=True),
    Column("copy\nGB/s", _roof(lambda roof: figure(roof.bandwidth_gbps))),
    Column("roof\nTFLOP/s", _roof(lambda roof: figure(roof.roof_tflops)), narrow=True),
    Column("of\nroof", _roof(lambda roof: f"{roof.share:.1%}"), narrow=True),
    Column("bound by", _roof(lambda roof: roof.bound), narrow=True),
    Column("J/text\n(95 % interval)", _joules),
)
