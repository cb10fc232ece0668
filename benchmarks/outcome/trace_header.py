"""What a trace says about its training run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from ...backends import ErrorBudget
from ..harness.document import Part
from .model import Count
from .parity import Ended, SideEnvironment

Beta = Annotated[float, Field(ge=0, lt=1)]


class TracePolicy(Part):
    requested: str = ""
    param: str
    compute: str
    accumulate: str = ""
    reason: str = ""
    mode: str = ""
    label: str


class TraceEnvironment(SideEnvironment):
    """A side's environment, with whatever else the run says about its machine and programs."""

    model_config = ConfigDict(extra="allow")


class PromisedBudget(Part):
    """The error budget that judges a run: the fields of `ErrorBudget`, and its label."""

    label: str
    backend: str
    dtype: str
    options: dict[str, Any] = Field(default={})
    draws: bool
    head_dtype: str = "float32"
    compute: str = ""

    @property
    def budget(self) -> ErrorBudget:
        given = self.given()
        del given["label"]
        return ErrorBudget(**given)


class Evaluation(Part):
    """The loss and the task's other figures."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)
    __pydantic_extra__: dict[str, float] = Field(init=False)

    epoch: int
    step: int
    loss: float

    @property
    def figures(self) -> dict[str, float]:
        return {"loss": self.loss, **self.__pydantic_extra__}


class Split(Part):
    """The evaluation split: its rows, and how much one answer can change each figure at most."""

    rows: Count
    sha256: str
    moves: dict[str, float]
    answer: Literal["largest", "above", "number"] = Field(
        default="largest",
        description="What an answer is: what has the largest logit, all above `boundary`, or the logits as numbers.",
    )
    boundary: float = 0.0


class TraceHeader(Part):
    """A trace's header. ended: the step at which training could not continue, and why; None if it was completed."""

    created: str | None = None
    label: str
    backend: str
    device: str
    emulated: bool
    policy: TracePolicy
    kernel: str
    layout: str
    model: str
    random_weights: bool
    dataset: str
    adam_on_device: Annotated[list[Beta], Field(min_length=2, max_length=2)] | None = Field(
        description="Adam's betas where its step counter is on the device, and bias corrections float32 ones."
    )
    error_budget: PromisedBudget
    weights_sha256: str
    probe_sha256: str
    replayed_sha256: str | None
    dropout_off: bool
    ended: Ended | None
    recipe: dict[str, Any]
    environment: TraceEnvironment
    config: dict[str, Any]
    batches: list[str]
    metrics: list[Evaluation]
    batch_sizes: list[Count] | None = Field(default=None, description="Traces of earlier versions have none.")
    evaluation: Split | None = Field(default=None, description="Traces of earlier versions have none.")
    layers: list[str] | None = Field(
        default=None,
        description="The calls of the layers of a user's own module, by name; null: a run on texts.",
    )
    unknown: list[str] = Field(
        default=[], description="Operations of a user's own module that an emulation computes in float32."
    )
