"""A result of `isotrain bench --workload end_to_end`: whole training runs, and loops extrapolated to whole runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Discriminator, Field, FiniteFloat, Tag, model_validator

from ..harness.document import Device, Interval, KernelUsed, NotNegative, Part, Peaks, Policy, Positive, Work
from ..harness.extrapolate import EPOCHS, Sampled
from ..harness.extrapolate import Part as Repeated
from .model import Config, Count, Energy, Measurement, Rates, Roofline, Share

END_TO_END: Literal["isotrain.end-to-end/2"] = "isotrain.end-to-end/2"
# The figures of the last evaluation that a result keeps.
ACCURACY = "eval/accuracy"
METRICS = ("eval/loss", ACCURACY, "eval/f1_macro")
Seconds = Annotated[list[Positive], Field(min_length=1)]


class _Process(Part):
    peak_bytes: Count
    model: str
    random_weights: bool
    device: str


class RunEnergy(Part):
    """Joules that a run used. If they are None, `source` says why."""

    joules: float | None
    source: str


class WholeProcess(_Process):
    """A training run that was timed to its end."""

    seconds: Positive
    status: str
    step: int
    total_steps: int
    phases: dict[str, FiniteFloat]
    dtype: str
    energy: RunEnergy
    dataset: str
    metrics: dict[str, float]

    @property
    def sampled(self) -> Sampled:
        return Sampled(self.seconds)


class TimedBatch(Part):
    """A batch: its texts, the length that they were padded to, and its tokens without padding."""

    texts: int
    length: int
    real_tokens: int


class TimedLoop(_Process):
    """Some steps and validation batches of a loop, from which its whole run is extrapolated."""

    once: dict[str, NotNegative]
    steps: Seconds
    validation: Seconds
    step_batches: list[TimedBatch]
    validation_batches: list[TimedBatch]
    steps_per_epoch: int
    validation_batches_per_epoch: int
    train_texts: int
    test_texts: int
    finite: bool

    @property
    def sampled(self) -> Sampled:
        steps = Repeated(self.steps, EPOCHS * self.steps_per_epoch)
        validation = Repeated(self.validation, EPOCHS * self.validation_batches_per_epoch)
        return Sampled(sum(self.once.values()), (steps, validation))


def _kind(process: Any) -> str:
    timed = "once" in process if isinstance(process, dict) else isinstance(process, TimedLoop)
    return "timed" if timed else "whole"


class TimedOf(Part):
    """What all processes timed, and how much the end-to-end run has."""

    steps: Count
    of_steps: Count
    validation_batches: Count
    of_validation_batches: Count


class Side(Part):
    name: str
    extrapolated: bool
    valid: bool
    reasons: list[str]
    warnings: list[str]
    processes: list[
        Annotated[Annotated[WholeProcess, Tag("whole")] | Annotated[TimedLoop, Tag("timed")], Discriminator(_kind)]
    ]
    seconds: Interval | None = None
    ratio: Interval | None = Field(default=None, description="How many times as fast this project's run is.")
    timed_of: TimedOf | None = Field(default=None, alias="from")
    work: Work | None = Field(
        default=None,
        description="Of the end-to-end run. Samples and real tokens: those trained on and evaluated, in all epochs; "
        "padded tokens: those that the encoder computed, fewer where features are kept; model FLOPs: the least that "
        "the job needs, the same for every side.",
    )
    figures: Rates | None = Field(default=None, description="Absent where the work was not counted.")
    share_of_peak: Share | None = Field(default=None, description="null where the peak is only the host's.")
    roofline: Roofline | None = Field(default=None, description="null where the peak is only the host's.")
    energy: Energy | None = None

    @model_validator(mode="after")
    def _processes_are_what_the_side_is(self) -> Side:
        known = [isinstance(process, TimedLoop) for process in self.processes]
        if set(known) - {self.extrapolated} or (self.valid and not known):
            raise ValueError(f"processes of side {self.name!r} are not those that it is of")
        return self

    @property
    def reached(self) -> Reached | None:
        if self.figures is None or self.work is None or self.energy is None:
            return None
        return Reached(self.figures, self.work, self.energy, self.share_of_peak, self.roofline)

    @property
    def sampled(self) -> list[Sampled]:
        """Each process's times: of a whole run, or of the parts that it is extrapolated from."""
        return [process.sampled for process in self.processes]


class Reached(NamedTuple):
    """The figures of a side, if its work was counted."""

    figures: Rates
    work: Work
    energy: Energy
    share_of_peak: Share | None
    roofline: Roofline | None


class Counted(Part):
    """The work of our run and of the loops' whole runs, and the limits of the device."""

    work: Work
    loops: list[Work]
    peaks: Peaks
    device: Device
    policy: Policy
    kernel: KernelUsed


class EndToEndConfig(Config):
    backend: str
    kernel: str
    epochs: int
    batch_size: int


class EndToEndMethod(Part):
    """steps and validation_batches: timed in each process of an extrapolated side."""

    processes: Count
    quick: bool
    steps: Count
    validation_batches: Count


class RunMemory(Part):
    """The peak memory of this project's run, over its processes, beside a process that only imports torch."""

    peak_bytes: Count
    import_torch_bytes: Count
    above_import_bytes: int
    scope: str


class EndToEnd(Measurement):
    """A result of `isotrain bench --workload end_to_end`. Times in seconds, memory in bytes.

    device, policy, kernel and peaks are null if the work was not counted.
    """

    kind: Literal["isotrain.end-to-end/2"] = Field(alias="schema")
    config: EndToEndConfig
    method: EndToEndMethod
    sides: list[Side] = Field(min_length=1, description="This project's run first.")
    device: Device | None
    policy: Policy | None
    kernel: KernelUsed | None
    peaks: Peaks | None
    memory: RunMemory | None

    @property
    def processes(self) -> list[WholeProcess | TimedLoop]:
        return [process for side in self.sides for process in side.processes]
