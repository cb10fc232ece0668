"""What reports read from a training run's folder. Everything else in its files is ignored."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from ..harness.document import ChoiceMade, Part, Placed, RangeCost


class RunDevice(Placed):
    backend: str
    name: str
    emulated: bool = False


class CastPolicy(Part):
    requested: str
    compute: str

    @property
    def label(self) -> str:
        return self.requested if self.compute == self.requested else f"{self.requested} (computed in {self.compute})"


class RunRecord(Part):
    """A training run's run.json."""

    model: str
    random_weights: bool
    dataset: str
    device: RunDevice
    cast_policy: CastPolicy
    workload: dict[str, Any] | None = Field(default=None, description="What a run of a user's own module trains.")
    environment: dict[str, Any] = Field(default={})


class RunSummary(Part):
    """A training run's summary.json, which is written when the run ends."""

    status: str
    step: int
    total_steps: int
    dtype: str
    seconds: float | None = None
    early_stop: str | None = None
    phases: dict[str, float] = Field(default={})
    peak_memory_bytes: int | None = None
    choices: list[ChoiceMade] = Field(default=[])


class RunProfile(Part):
    """An operators.json: what steps of a run cost, part by part."""

    step: int
    steps: int
    device: str
    ranges: list[RangeCost]
    operators: list[RangeCost]


class BestBy(Part):
    metric: str
    mode: Literal["min", "max"]


class Collapse(Part):
    step: int
    reason: str


class EndedRun(RunSummary):
    """A complete summary, with the task's figures of the last evaluation."""

    model_config = ConfigDict(extra="allow")

    model: str
    device: str
    dataset: str
    best: dict[str, float]
    best_by: BestBy
    collapse: Collapse | None
    seconds: float | None

    @property
    def evaluation(self) -> dict[str, float]:
        """The last evaluation's figures, by names such as eval/loss."""
        extra = self.__pydantic_extra__ or {}
        return {name: float(value) for name, value in extra.items() if name.startswith("eval/")}
