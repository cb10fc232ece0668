"""What the processes of a measurement read and write, and the parts of results."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from ...albert_core.terminal.text import figure
from ...backends.host.choices import Chosen

# Which targets an error concerns: all of the run, those of one backend, or only one.
RUN, BACKEND, TARGET = "run", "backend", "target"

Positive = Annotated[PositiveFloat, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Part(BaseModel):
    """A part of a document. It is validated when it is made and when it is read. Unknown keys are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True)

    @classmethod
    def of(cls, value: object) -> Self:
        """The part with the values of a dataclass's fields of the same names."""
        return cls.model_validate(value, strict=False, from_attributes=True)

    def given(self) -> dict[str, Any]:
        """The fields that were given, by name, to make another part from them."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    def document(self) -> dict[str, Any]:
        """The fields that were given, as a file has them."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Spec(Part):
    """What a process reads from stdin. result: the file for its answer."""

    result: str


class Refused(Part):
    """An error that the user can fix, in one line, and which targets it concerns."""

    message: str
    scope: str = TARGET


class Refusal(Part):
    """The answer of a process that refused its input."""

    error: Refused


class Interval(Part):
    """A median and its 95 % interval by hierarchical bootstrap, in the unit of the samples."""

    median: Positive
    low: Positive
    high: Positive

    def rate(self, work: float) -> Interval:
        """`work` per unit of time, if this is the interval of a time. The bounds change places."""
        return Interval(median=work / self.median, low=work / self.high, high=work / self.low)

    def words(self) -> str:
        return f"{figure(self.low)} to {figure(self.high)}"


class Unit(Part):
    """The rate of the matrix unit itself, if the backend can measure it."""

    unit: str
    dtype: str
    fed_from: str
    tflops: Positive
    threads: Annotated[int, Field(ge=1)]


class Peaks(Part):
    """The device's limits as the run measured them, and as its vendor states them (None: not known)."""

    dtype: str
    matmul_tflops: Positive
    matmul_size: Annotated[int, Field(ge=1)]
    copy_gbps: Positive = Field(description="Of 256 MiB, read and written.")
    step_copy_gbps: Positive = Field(description="Of as many bytes as the step moves, which a cache may hold.")
    step_copy_bytes: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Read, and as many written.")
    vendor_tflops: Positive | None
    vendor_gbps: Positive | None
    seconds: NotNegative
    contended: bool = Field(
        description="Other work had the CPUs in nearly every block of a part: the true peak is higher."
    )
    unit: Unit | None = None

    @property
    def unit_tflops(self) -> float | None:
        """The matrix unit's rate, if it was measured in the dtype of these peaks."""
        return self.unit.tflops if self.unit is not None and self.unit.dtype == self.dtype else None

    @property
    def rate(self) -> str:
        """The unit of rates of products."""
        return "TOP/s" if self.dtype == "int8" else "TFLOP/s"

    @property
    def compute_limit(self) -> float:
        """TFLOP/s that no kernel can exceed: the measured matrix product, or the matrix unit's rate if it is higher.

        A library's product may use only a fraction of the unit, so a faster kernel isn't a measuring error.
        """
        return max(self.matmul_tflops, self.unit_tflops or 0.0)


class Placed(Part):
    """What ran on a device, or on the host that emulates it."""

    emulated: bool = Field(description="Every time and rate is the host's, never the device's.")

    @property
    def real(self) -> bool:
        """Whether times and peaks are the device's and not the host's."""
        return not self.emulated


class Device(Placed):
    backend: str
    device: str
    name: str
    memory_bytes: int | None = None
    compute_units: int | None = None
    vendor_peak_tflops: float | None = None
    vendor_bandwidth_gbps: float | None = None
    features: list[str] = Field(default=[])
    versions: dict[str, str] = Field(default={})
    untested: bool = Field(default=False, description="The authors of its backend have never run it.")


class Policy(Part):
    """The dtypes that the encoder really used, and why; see `backends.CastPolicy`."""

    requested: str
    param: str
    compute: str
    accumulate: str
    reason: str
    mode: str = ""
    largest_distance: Positive | None = None
    label: str


class ChoiceMade(Part):
    """How one of several ways was chosen, by measuring it on the device before anything was timed."""

    name: str
    shape: str = Field(description="The class of shapes that it holds for.")
    way: str = Field(description="Empty if none computed right.")
    seconds: dict[str, Positive] = Field(description="Of each way that computed right.")
    refused: dict[str, str] = Field(description="By way, why it could not be chosen.")
    source: str = Field(description='"measured", "kept" by an earlier measurement, or why it was not measured.')

    def line(self) -> str:
        return Chosen(**self.model_dump()).line()


class KernelUsed(Part):
    name: str
    version: str
    notes: list[str] = Field(default=[])
    choices: list[ChoiceMade] = Field(default=[])


class Model(Part):
    """code_sha256: of the file of a user's own module."""

    name: str
    label: str
    random_weights: bool
    sha256: Sha256
    code_sha256: Sha256 | None = None


class Data(Part):
    """The data of a measurement. A module's own batches have samples and perhaps tokens, and no lengths and labels."""

    name: str
    sha256: Sha256
    texts: int = Field(description="Samples of all batches.")
    tokens: int | None = None
    mean_length: float | None = None
    max_length: int | None = None
    num_labels: int | None = None


class Work(Part):
    """Samples, tokens, FLOPs and bytes. moved_bytes: the fewest that must be moved to and from memory."""

    samples: Positive
    real_tokens: Positive | None = Field(default=None, description="Absent where a module's batches have no tokens.")
    padded_tokens: Positive | None = Field(default=None, description="With padding; absent likewise.")
    model_flops: Positive
    hardware_flops: Positive
    moved_bytes: Positive


class WarmUp(Part):
    steps: Annotated[int, Field(ge=1)]
    steady: bool = Field(description="False: cut by its budget before it was seen steady.")
    compiles: Annotated[int, Field(ge=0)]


class Memory(Part):
    peak_bytes: Annotated[int, Field(ge=0)]
    scope: str
    growth_bytes_per_step: Positive | None = Field(default=None, description="null where it is within the noise.")


class BlockEnergy(Part):
    source: str
    block_joules: list[float] = Field(description="One value a block; empty without a counter.")


class Threads(Part):
    intra_op: int
    inter_op: int


class ProcessEnvironment(Part):
    """The process's share of the machine. before and after: load, clocks, temperature."""

    threads: Threads
    affinity: list[int] | str
    involuntary_switches_per_second: float
    waited_seconds_per_second: float = 0.0
    contended: bool
    before: dict[str, Any]
    after: dict[str, Any]


class Timed(Part):
    """The times of one process, and the conditions of the measurement."""

    steps_per_block: Annotated[int, Field(ge=1)] = Field(description="k: steps between two fences.")
    step_seconds: list[float] = Field(
        min_length=1, description="Mean seconds a step, one value a block. Outliers included."
    )
    cpu_step_seconds: list[NotNegative] = Field(
        default=[], description="Mean CPU seconds a step of all threads of the process, one value a block."
    )
    warm_up: WarmUp
    phases: dict[str, NotNegative]
    memory: Memory
    energy: BlockEnergy
    environment: ProcessEnvironment
    losses: list[Annotated[float, Field(allow_inf_nan=True)]] = Field(
        default=[], description="Of the first training steps after the first one; they repeat for a seed."
    )


# Logits by the number of their text, which need not be finite.
Logits = dict[str, list[Annotated[float, Field(allow_inf_nan=True)]]]


class RangeCost(Part):
    """Milliseconds of a mean step in a named range, or in an operator without those it calls."""

    name: str
    calls: NotNegative
    host_ms: NotNegative
    device_ms: NotNegative


class Profile(Part):
    """Steps under torch's profiler, which slows them down: their shares count, not their times."""

    trace: str = Field(description="The name of the trace's file, for Perfetto, in the folder beside the result.")
    steps: Annotated[int, Field(ge=1)]
    ranges: list[RangeCost]
    operators: list[RangeCost]


class Measured(Timed):
    """Everything that a worker measured. probe: logits of some texts, by number; expected: the reference's."""

    peaks: Peaks
    work: Work = Field(description="Mean work of one step.")
    device: Device
    policy: Policy
    kernel: KernelUsed
    model: Model
    data: Data
    probe: Logits
    expected: Logits = Field(default={}, description="Empty from an older revision.")
    reasons: list[str]
    warnings: list[str]
    profile: Profile | None = None


class Shape(Part):
    """A shape that a sweep tried, with its speed or the reason that it can't run."""

    layout: str
    batch_size: Annotated[int, Field(ge=1)]
    samples_per_second: Positive | None = None
    error: str | None = None


class Sweep(Part):
    sweep: list[Shape]
