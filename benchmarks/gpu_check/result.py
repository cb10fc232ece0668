"""What the check of a GPU writes: a file for each of its own measurements, and one about all stages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from ..harness.document import ChoiceMade, Data, Device, Interval, Model, NotNegative, Part, Peaks, Policy, Spec

GPU_CHECK: Literal["isotrain.gpu-check/1"] = "isotrain.gpu-check/1"

# The contender that the others are compared with.
OURS = "ours, auto"
# At least, and the aim.
SHARE_OF_PEAK = (0.50, 0.60)
PADDED_RATIO = (8.0, 15.0)
SORTED_RATIO = (1.4, 2.0)


What = Literal["peaks", "throughput", "operators"]


class MeasureSpec(Spec):
    """What one of the check's own processes measures.

    Attributes:
        compiled: With torch.compile.
        tiny: In the sizes of a dry run.
        peaks: The file of the measured peaks, once they are measured.
    """

    what: What
    backend: str
    compiled: bool
    tiny: bool
    peaks: str


class Figure(Part):
    """A measured figure, what it should at least be, and what it is aimed to be."""

    name: str
    value: float
    least: float
    aim: float

    def line(self) -> str:
        verdict = "aim reached" if self.value >= self.aim else "reached" if self.value >= self.least else "NOT reached"
        return f"{self.name}: {self.value:.2f} (at least {self.least:g}, aim {self.aim:g}): {verdict}"


class Opened(Part):
    device: Device
    peaks: Peaks
    environment: dict[str, Any]

    def lines(self) -> Iterator[str]:
        peaks = self.peaks
        yield f"{self.device.name}: {peaks.matmul_tflops:.1f} TFLOP/s in {peaks.dtype}, {peaks.copy_gbps:.0f} GB/s"


class Contender(Part):
    """One way to compute all texts. samples: seconds of each round."""

    seconds: Interval
    texts_per_second: float
    model_tflops: float
    share_of_peak: float
    samples: list[float]


class Throughput(Part):
    """failed: why a contender has no figure. problems: what is wrong with those that have one."""

    policy: Policy
    model: Model
    texts: Data
    peaks: Peaks
    contenders: dict[str, Contender]
    speedup_of_ours: dict[str, Interval]
    failed: dict[str, str]
    problems: list[str]
    choices: list[ChoiceMade] = Field(default=[])

    def lines(self) -> Iterator[str]:
        for name, row in self.contenders.items():
            ratio = self.speedup_of_ours.get(name)
            beside = "" if ratio is None else f", ours is {ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"
            yield (
                f"{name}: {row.texts_per_second:,.0f} texts/s, {row.model_tflops:.2f} model TFLOP/s, "
                f"{row.share_of_peak:.1%} of the peak{beside}"
            )
        yield from (f"{name}: {reason}" for name, reason in self.failed.items())
        yield from (f"chosen: {choice.line()}" for choice in self.choices)

    def figures(self) -> Iterator[Figure]:
        """What the result should reach."""
        if OURS in self.contenders:
            least, aim = SHARE_OF_PEAK
            yield Figure(name="share of the peak", value=self.contenders[OURS].share_of_peak, least=least, aim=aim)
        for name, ratio in self.speedup_of_ours.items():
            if name.startswith("transformers"):
                least, aim = PADDED_RATIO if ", padded " in name else SORTED_RATIO
                yield Figure(name=f"times {name}", value=ratio.median, least=least, aim=aim)


class Operator(Part):
    """The seconds of each way or why it can't run, and the fastest one, or an empty string."""

    seconds: dict[str, float | str]
    fastest: str


class Operators(Part):
    operators: dict[str, Operator]

    def lines(self) -> Iterator[str]:
        for name, part in self.operators.items():
            times = ", ".join(
                f"{way} {value * 1e6:.0f} us" if isinstance(value, float) else f"{way} {value}"
                for way, value in part.seconds.items()
            )
            best = f"fastest is {part.fastest}: " if part.fastest else ""
            yield f"{name}: {best}{times}"


class StageResult(Part):
    """How a stage ended. Its files and logs are in the folder of its name."""

    name: str
    status: Literal["passed", "failed", "out of time", "unfinished", "skipped"]
    seconds: NotNegative
    detail: str = Field(description="What went wrong; empty if nothing did.")

    def line(self) -> str:
        return f"{self.name}: {self.status}, {self.seconds:.0f} s{f': {self.detail}' if self.detail else ''}"


class GpuCheck(Part):
    """All stages so far."""

    kind: Literal["isotrain.gpu-check/1"] = Field(alias="schema")
    created: str
    backend: str
    tiny: bool
    device: Device | None
    stages: list[StageResult]
    figures: list[Figure]

    @property
    def passed(self) -> bool:
        return all(stage.status in ("passed", "skipped") for stage in self.stages)
