"""The columns of the tables of measured targets and end-to-end runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median

from ....albert_core.terminal.text import figure
from ...harness.document import Interval
from ...harness.plan import CACHED
from ...outcome.end_to_end import Reached
from ...outcome.model import MeasuredTarget, Rates, Roofline, Share, StepSeconds, Target
from ..blocks import Column

# The width that all columns need; a narrower terminal gets fewer, a file or pipe always gets all.
WIDE = 130
# What the columns of rates and limits read.
Placed = MeasuredTarget | Reached


def of_targets(columns: Iterable[Column[MeasuredTarget]], of_host: str | None = None) -> list[Column[Target]]:
    """The columns for all targets: empty for one without figures.

    Args:
        columns: Of targets with figures.
        of_host: The cell of a target whose times are only this host's; by default its figure.
    """

    def lifted(column: Column[MeasuredTarget]) -> Column[Target]:
        def cell(target: Target) -> str:
            if not isinstance(target, MeasuredTarget):
                return ""
            return column.cell(target) if of_host is None or target.real else of_host

        return Column(column.header, cell, column.numeric, column.least_width)

    return [lifted(column) for column in columns]


def _rate(of: Callable[[Rates], Interval | None]) -> Callable[[Placed], str]:
    def cell(entry: Placed) -> str:
        rate = of(entry.figures)
        return "" if rate is None else figure(rate.median)

    return cell


def _tokens(of: Callable[[Rates], Interval | None]) -> Callable[[MeasuredTarget], str]:
    """A rate of tokens. A step on cached features computes none."""
    return lambda target: "cached" if target.layout == CACHED else _rate(of)(target)


def _padding(target: MeasuredTarget) -> str:
    real, computed = target.work.real_tokens, target.work.padded_tokens
    return "" if real is None or computed is None else f"{1 - real / computed:.0%}"


def _milliseconds(of: Callable[[StepSeconds], float | None]) -> Callable[[MeasuredTarget], str]:
    def cell(target: MeasuredTarget) -> str:
        seconds = of(target.figures.step_seconds)
        return "n < 100" if seconds is None else figure(seconds * 1e3)

    return cell


def _share(of: Callable[[Share], float | None]) -> Callable[[Placed], str]:
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


def _steady(target: MeasuredTarget) -> str:
    return f"{_phase('steady')(target)} ({target.n})" if "steady" in target.phases else ""


def _roof(text: Callable[[Roofline], str]) -> Callable[[Placed], str]:
    """A cell of the entry's roofline; "none" without a peak of the device."""
    return lambda entry: "none" if entry.roofline is None else text(entry.roofline)


def _joules(entry: Placed) -> str:
    joules = entry.energy.joules_per_sample
    return "n/a" if joules is None else f"{figure(joules.median)} ({joules.words()})"


SAMPLES = Column[Placed]("samples/s", _rate(lambda rates: rates.samples_per_second))
INTERVAL = Column[Placed]("95 % interval", lambda entry: entry.figures.samples_per_second.words())
MODEL_TFLOPS = Column[Placed]("model TFLOP/s", _rate(lambda rates: rates.model_tflops))
MODEL_SHARE = Column[Placed]("of peak", _share(lambda share: share.model))
HARDWARE_TFLOPS = Column[Placed]("hardware TFLOP/s", _rate(lambda rates: rates.hardware_tflops))
HARDWARE_SHARE = Column[Placed]("of peak", _share(lambda share: share.hardware))
UNIT_SHARE = Column[Placed]("of unit", _share(lambda share: share.unit))
REAL_TOKENS = Column[Placed]("real tokens/s", _rate(lambda rates: rates.real_tokens_per_second), least_width=WIDE)
COMPUTED_TOKENS = Column[Placed](
    "computed tokens/s", _rate(lambda rates: rates.padded_tokens_per_second), least_width=WIDE
)

MOVED = Column[Placed]("moved MB/step", lambda entry: figure(entry.work.moved_bytes / 1e6), least_width=WIDE)
INTENSITY = Column[Placed]("FLOP/byte", _roof(lambda roof: figure(roof.intensity_flop_per_byte)))
COPY = Column[Placed]("copy GB/s", _roof(lambda roof: figure(roof.bandwidth_gbps)), least_width=WIDE)
REACHED = Column[Placed]("TFLOP/s", _roof(lambda roof: figure(roof.share * roof.roof_tflops)), least_width=WIDE)
ROOF = Column[Placed]("roof TFLOP/s", _roof(lambda roof: figure(roof.roof_tflops)))
ROOF_SHARE = Column[Placed]("of roof", _roof(lambda roof: f"{roof.share:.1%}"))
BOUND = Column[Placed]("bound by", _roof(lambda roof: roof.bound), numeric=False)
JOULES = Column[Placed]("J/sample", _joules, least_width=WIDE)

RELATIVE = Column[MeasuredTarget]("speed vs first", _ratio, least_width=WIDE)
TARGET_TOKENS = Column[MeasuredTarget](
    "real tokens/s", _tokens(lambda rates: rates.real_tokens_per_second), least_width=WIDE
)
P50 = Column[MeasuredTarget]("step p50 ms", _milliseconds(lambda step: step.p50))
P90 = Column[MeasuredTarget]("step p90 ms", _milliseconds(lambda step: step.p90), least_width=WIDE)
P99 = Column[MeasuredTarget]("step p99 ms", _milliseconds(lambda step: step.p99), least_width=WIDE)
PADDING = Column[MeasuredTarget]("padding", _padding, least_width=WIDE)
COMPUTES_IN = Column[MeasuredTarget](
    "computes in", lambda target: target.policy.compute, numeric=False, least_width=WIDE
)
PEAK = Column[MeasuredTarget]("peak MiB", lambda target: figure(target.memory.peak_bytes / 2**20))
STEADY = Column[MeasuredTarget]("steady s (n)", _steady, least_width=WIDE)
PHASES: tuple[Column[MeasuredTarget], ...] = (
    Column("computed tokens/s", _tokens(lambda rates: rates.padded_tokens_per_second), least_width=WIDE),
    HARDWARE_TFLOPS,
    HARDWARE_SHARE,
    Column("import s", _phase("import"), least_width=WIDE),
    Column("load s", _phase("open", "load", "data", "prepare")),
    Column("first step s", _phase("first_step")),
    Column("warm-up s (steps)", _warm_up),
    Column("compiles in it s", _phase("later_compiles"), least_width=WIDE),
    STEADY,
    PEAK,
)
ROOFLINE = (MOVED, INTENSITY, COPY, ROOF, ROOF_SHARE, BOUND, JOULES)
