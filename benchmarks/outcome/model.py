"""The models of a result of `isotrain bench`."""

from __future__ import annotations

import math
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from ..harness.document import (
    Data,
    Device,
    Interval,
    KernelUsed,
    Memory,
    Model,
    NotNegative,
    Part,
    Peaks,
    Placed,
    Policy,
    Positive,
    Profile,
    Sha256,
    Shape,
    Timed,
    Work,
)

BENCH: Literal["isotrain.bench/2"] = "isotrain.bench/2"
Status = Literal["complete", "partial", "failed"]
Count = Annotated[int, Field(ge=1)]


class StepSeconds(Interval):
    p50: Positive
    p90: Positive
    p99: Positive | None = Field(description="null below 100 blocks.")


class Spread(Part):
    """Over processes."""

    median: NotNegative
    min: NotNegative
    max: NotNegative


class Rates(Part):
    """Work over seconds."""

    samples_per_second: Interval
    real_tokens_per_second: Interval | None = None
    padded_tokens_per_second: Interval | None = None
    model_tflops: Interval
    hardware_tflops: Interval


class Figures(Rates):
    step_seconds: StepSeconds


class Roofline(Part):
    """The position on the roofline: the hardware FLOPs reached `share` of the attainable `roof_tflops`.

    bandwidth_gbps: of a copy as large as the step's traffic, which may fit into a cache.
    """

    intensity_flop_per_byte: Positive
    roof_tflops: Positive
    share: Positive
    bound: Literal["compute", "memory"]
    bandwidth_gbps: Positive


class Share(Part):
    """Shares of the measured peak. unit: of the matrix unit's rate."""

    model: Positive
    hardware: Positive
    unit: Positive | None = None


class Energy(Part):
    """The energy of the whole device during the measurement. source: the counter, or "unavailable: " and the reason."""

    source: str
    joules_per_sample: Interval | None
    n: Annotated[int, Field(ge=0)]


class Relative(Interval):
    """Texts per second relative to the target `to`."""

    to: str


class Process(Timed):
    process: Annotated[int, Field(ge=0)]
    wall_seconds: Positive
    peaks: Peaks | None = Field(default=None, description="Earlier revisions measured them in each process.")


class Probe(Part):
    """Logits of a few texts, of the process that is farthest from the reference: transformers' module in float32.

    Of a user's own module: by batch, the loss and a sample of the outputs, against the same module on the host.
    """

    logits: dict[str, list[float]] = Field(description="By the number of the text; without those that aren't finite.")
    distance: NotNegative | None = Field(
        description="The largest relative L2 distance of a text's logits from the reference's; null if not finite."
    )


class _Target(Placed):
    """What was to be measured, and how it ended."""

    label: str
    backend: str
    workload: Literal["forward", "train_step", "head_step", "full_step"]
    layout: Literal["padded", "bucketed", "packed", "cached", "dynamic", "sorted", "static", "own"] = Field(
        description="cached: features that were computed before, which have no tokens. dynamic: padded to the longest "
        "text, by ours to a multiple of 8. sorted and static are baselines'. own: the batches of the user's own module."
    )
    kernel: str = Field(description="As asked for; kernel_used is what ran.")
    batch_size: Annotated[int, Field(ge=0)] = Field(description="Texts a step; 0: the module's own batches.")
    module: str = Field(default="", description="The user's own workload, as given.")
    torch_compile: str = Field(default="", description="Its mode, for a compiled step of the whole model.")
    dtype: str = Field(default="", description="As asked for, if the targets of the run have several.")
    baseline: bool = Field(description="A baseline; its name is in kernel.")
    sweep: list[Shape] = Field(
        description="The shapes that were tried before the measurement; the fastest became the target's."
    )
    config_sha256: Sha256
    status: Literal["complete", "partial", "failed", "not run", "unavailable"] = Field(
        description="unavailable: a baseline that isn't installed or can't run here."
    )
    valid: bool
    reasons: list[str] = Field(description="Why it is not valid; empty when it is.")
    warnings: list[str]

    @property
    def name(self) -> str:
        """The label as every table shows it."""
        return self.label

    @property
    def named_kernel(self) -> str:
        """The kernel, with the dtype if the targets of the run have several."""
        return f"{self.kernel} {self.dtype}".rstrip()


class MeasuredTarget(_Target):
    """A target with figures, and everything about their measurement."""

    figures: Figures
    kernel_used: KernelUsed
    device: Device
    policy: Policy
    model: Model
    data: Data
    work: Work = Field(
        description="Mean work of one step over the list of batches. Tokens of a head_step are those that its cached "
        "features stand for."
    )
    n: Count = Field(description="Timed blocks of all processes.")
    phases: dict[str, Spread]
    memory: Memory
    peaks: Peaks
    share_of_peak: Share | None = Field(description="null where the peak is only the host's.")
    roofline: Roofline | None = Field(description="null where the peak is only the host's.")
    energy: Energy
    processes: list[Process] = Field(min_length=1)
    contended_processes: list[int] | None = Field(
        default=None,
        description="Those from which other work took the CPUs: their figures are too slow and too scattered. Earlier "
        "revisions say it only in each process's environment.",
    )
    outliers: list[Annotated[list[int], Field(min_length=2, max_length=2)]] = Field(
        description="[process, block] beyond Tukey's fences: labelled and kept."
    )
    probe: Probe | None = Field(default=None, description="Absent from older results.")
    profile: Profile | None = Field(default=None, description="Of the first process, where it was asked for.")
    relative: Relative | None = Field(
        description="Speed over that of the first target of this workload and, without baselines, batch size; null for "
        "that one."
    )

    @model_validator(mode="after")
    def _shares_and_times(self) -> MeasuredTarget:
        if self.real and self.share_of_peak is None:
            raise ValueError("figures without a share of the peak")
        times = [process.step_seconds for process in self.processes]
        if len({len(blocks) for blocks in times}) != 1 or not all(0 < value < math.inf for value in chain(*times)):
            raise ValueError(FALSE_TIMES)
        return self

    @property
    def contended(self) -> bool:
        """Whether other work took the CPUs from one of the processes."""
        return any(process.environment.contended for process in self.processes)

    @property
    def text_seconds(self) -> list[list[float]]:
        """Seconds per text, by process and block."""
        return [[seconds / self.work.samples for seconds in process.step_seconds] for process in self.processes]


class UnmeasuredTarget(_Target):
    """A target without figures; its reasons say why. If only its times are invalid, it has everything else."""

    figures: None = None
    kernel_used: KernelUsed | None = None
    device: Device | None = None
    policy: Policy | None = None
    model: Model | None = None
    data: Data | None = None
    work: Work | None = None
    n: int = 0
    phases: dict[str, Spread] = Field(default={})
    memory: Memory | None = None
    peaks: Peaks | None = None
    share_of_peak: None = None
    roofline: None = None
    energy: Energy | None = None
    processes: list[Process] = Field(default=[])

    @property
    def contended(self) -> bool:
        return False


def _has_figures(target: Any) -> str:
    given = target.get("figures") if isinstance(target, dict) else getattr(target, "figures", None)
    return "unmeasured" if given is None else "measured"


Target = MeasuredTarget | UnmeasuredTarget
FALSE_TIMES = "its times are not the same number of positive seconds a process"


class Git(Part):
    revision: str
    dirty: bool
    changed_files: int = 0


class Environment(Part):
    """The machine and the installation. What could not be read is a text that begins with "unavailable: "."""

    model_config = ConfigDict(extra="allow")

    host: dict[str, Any]
    cpu: dict[str, Any]
    load: list[float] | str
    versions: dict[str, str]
    git: Git | str

    @property
    def revision(self) -> str:
        """The short git revision, with a "+" if files differed from it."""
        if isinstance(self.git, str):
            return "unknown"
        return f"{self.git.revision[:10]}{'+' if self.git.dirty else ''}"


class Config(Part):
    """What was measured. Results are comparable only if all of it is equal."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(description="An encoder, or a user's own workload, which has none of the keys of texts.")
    dtype: str
    strict_dtype: bool
    max_length: int | None = None
    threads: int | None
    dataset: str | None = None
    tokenizer: str | None = None
    seed: int
    mlp_hidden_size: int | None = None


class Measurement(Part):
    """What every result of a measurement has. kind: the schema's name, which a document begins with."""

    kind: str = Field(alias="schema")
    created: str
    status: Status = Field(
        description="partial: interrupted. failed: a process died, ran out of time or refused its input."
    )
    valid: bool
    notes: list[str]
    command: list[str]
    config_sha256: Sha256
    environment: Environment


class BenchConfig(Config):
    batches: int
    num_labels: int | None = None
    texts: int | None = None
    static_shapes: int | None = None


class BenchMethod(Part):
    """How thoroughly it was measured."""

    processes: Count
    blocks: Count
    seconds: Positive
    quick: bool
    time_limit: Positive


class Comparison(Part):
    """How many times as fast as a baseline one of this project's kernels is. own and baseline: labels of targets."""

    own: str
    baseline: str
    ratio: Interval
    valid: bool = Field(description="Whether both targets are.")


class Bench(Measurement):
    """A result of `isotrain bench`. Times in seconds, memory in bytes, rates per second."""

    kind: Literal["isotrain.bench/2"] = Field(alias="schema")
    config: BenchConfig
    method: BenchMethod
    targets: Annotated[
        list[
            Annotated[
                Annotated[MeasuredTarget, Tag("measured")] | Annotated[UnmeasuredTarget, Tag("unmeasured")],
                Discriminator(_has_figures),
            ]
        ],
        Field(min_length=1),
    ]
    comparisons: list[Comparison] = Field(description="Empty without --vs.")

    @property
    def measured(self) -> list[MeasuredTarget]:
        """The targets that have figures."""
        return [target for target in self.targets if isinstance(target, MeasuredTarget)]
