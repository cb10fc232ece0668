"""What the report reads of each kind of document, and what must hold of it; anything else in it is left alone.

A document that isn't so raises pydantic's ValidationError: a report never guesses what a damaged result meant.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, PositiveFloat, model_validator

from ....albert_core.terminal.text import figure
from ...outcome.model import emulated_name
from .text import clean

Text = Annotated[str, BeforeValidator(lambda value: clean(value) if isinstance(value, str) else value)]
Positive = Annotated[PositiveFloat, Field(allow_inf_nan=False)]


class Part(BaseModel):
    """A part of a document: checked where it is read, blind to the rest."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Interval(Part):
    """A median with its 95 % interval."""

    median: Positive
    low: Positive
    high: Positive

    def words(self) -> str:
        return f"{figure(self.low)} to {figure(self.high)}"


class StepSeconds(Interval):
    p50: Positive
    p90: Positive
    p99: Positive | None = None


class Spread(Part):
    """Over processes."""

    median: FiniteFloat


class Figures(Part):
    step_seconds: StepSeconds
    samples_per_second: Interval
    real_tokens_per_second: Interval
    model_tflops: Interval
    hardware_tflops: Interval


class Unit(Part):
    """The matrix unit's own rate."""

    unit: Text
    tflops: Positive


class Peaks(Part):
    dtype: Text
    matmul_tflops: Positive
    copy_gbps: Positive
    vendor_tflops: Positive | None = None
    vendor_gbps: Positive | None = None
    unit: Unit | None = None
    contended: bool = False


class Roofline(Part):
    """Where a target stands under the roof: `share` of `roof_tflops` is what it reached.

    `bandwidth_gbps`: of a copy as large as its step's traffic, which a cache may hold; None: of a large copy.
    """

    intensity_flop_per_byte: Positive
    roof_tflops: Positive
    share: Positive
    bound: Text
    bandwidth_gbps: Positive | None = None


class Device(Part):
    name: Text
    emulated: bool


class Policy(Part):
    label: Text


class Model(Part):
    label: Text
    random_weights: bool


class KernelUsed(Part):
    name: Text
    version: Text


class Memory(Part):
    peak_bytes: Annotated[int, Field(ge=0)]


class Energy(Part):
    """`source`: the counter, or "unavailable: " and the reason."""

    source: Text
    joules_per_sample: Interval | None = None


class Share(Part):
    model: Positive
    hardware: Positive


class ProcessEnvironment(Part):
    contended: bool = False


class Process(Part):
    environment: ProcessEnvironment = ProcessEnvironment()


class Target(Part):
    """One target of a bench result. Without `figures` it was not measured, and `reasons` say why."""

    label: Text
    backend: Text
    valid: bool
    status: Text
    reasons: list[Text]
    warnings: list[Text]
    figures: Figures | None = None
    kernel_used: KernelUsed | None = None
    device: Device | None = None
    policy: Policy | None = None
    model: Model | None = None
    n: int = 0
    phases: dict[Text, Spread] = {}
    memory: Memory | None = None
    peaks: Peaks | None = None
    share_of_peak: Share | None = None
    roofline: Roofline | None = None
    energy: Energy | None = None
    processes: list[Process] = []

    @model_validator(mode="after")
    def _figures_come_with_what_they_are_of(self) -> Target:
        known = (self.kernel_used, self.device, self.policy, self.model, self.memory, self.peaks)
        # Of an emulated device there is no share: the peak that was measured is the host's.
        if self.figures is not None and (None in known or (self.share_of_peak is None and not self.emulated)):
            raise ValueError(f"target {self.label!r} has figures without its device, model or peaks")
        return self

    @property
    def emulated(self) -> bool:
        return self.device is not None and self.device.emulated

    @property
    def contended(self) -> bool:
        return any(process.environment.contended for process in self.processes)

    @property
    def name(self) -> str:
        return emulated_name(self.label, self.backend) if self.emulated else self.label


class Measurement(Part):
    """What every result of a measurement says of itself."""

    created: Text
    status: Text
    notes: list[Text]
    command: list[Text]
    config: dict[str, Any]
    environment: dict[str, Any]


class BenchMethod(Part):
    processes: int
    blocks: int
    quick: bool


class Comparison(Part):
    """How many times as fast as a baseline one of this project's kernels is."""

    own: Text
    baseline: Text
    ratio: Interval
    valid: bool


class Bench(Measurement):
    """A result of `isotrain bench`."""

    kind: Literal["isotrain.bench/2"] = Field(alias="schema")
    method: BenchMethod
    targets: Annotated[list[Target], Field(min_length=1)]
    comparisons: list[Comparison] = []


class WholeProcess(Part):
    """One end-to-end run, or what was timed of one."""

    device: Text
    model: Text
    random_weights: bool
    phases: dict[Text, FiniteFloat] = {}
    seconds: FiniteFloat | None = None


class TimedOf(Part):
    steps: int
    of_steps: int


class Rates(Part):
    """What an end-to-end run did in a second of its time."""

    samples_per_second: Interval
    real_tokens_per_second: Interval
    model_tflops: Interval
    hardware_tflops: Interval


class Side(Part):
    name: Text
    extrapolated: bool
    valid: bool
    reasons: list[Text]
    processes: list[WholeProcess]
    seconds: Interval | None = None
    ratio: Interval | None = None
    timed_of: TimedOf | None = Field(default=None, alias="from")
    figures: Rates | None = None
    share_of_peak: Share | None = None
    roofline: Roofline | None = None
    energy: Energy | None = None


class EndToEndMethod(Part):
    processes: int
    quick: bool


class EndToEnd(Measurement):
    """A result of `isotrain bench --workload end_to_end`."""

    kind: Literal["isotrain.end-to-end/2"] = Field(alias="schema")
    method: EndToEndMethod
    sides: Annotated[list[Side], Field(min_length=1)]

    @property
    def processes(self) -> list[WholeProcess]:
        return [process for side in self.sides for process in side.processes]


class RunDevice(Part):
    backend: Text
    name: Text
    emulated: bool = False


class CastPolicy(Part):
    requested: Text
    compute: Text

    @property
    def label(self) -> str:
        return self.requested if self.compute == self.requested else f"{self.requested} (computed in {self.compute})"


class RunRecord(Part):
    """A training run's run.json."""

    model: Text
    random_weights: bool
    dataset: Text
    device: RunDevice
    cast_policy: CastPolicy
    environment: dict[str, Any] = {}


class RunSummary(Part):
    """A training run's summary.json; there is none before the run has ended."""

    status: Text
    step: int
    total_steps: int
    dtype: Text
    seconds: FiniteFloat | None = None
    phases: dict[Text, FiniteFloat] = {}
    peak_memory_bytes: int | None = None
