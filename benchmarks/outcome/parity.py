"""A result of `isotrain parity compare`: candidates judged against a float64 run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from ..harness.document import Part, Positive, Sha256
from .model import Count

PARITY: Literal["isotrain.parity/2"] = "isotrain.parity/2"
# A value that is not finite is null.
Figure = float | None
Curve = list[Figure]
Step = Annotated[int, Field(ge=0, description="0: before the first step.")]


class Series(Part):
    """A run's figures by step. A figure that is not finite is null."""

    step: list[int] = Field(default=[])
    loss: Curve = Field(default=[])
    loss_low: Curve = Field(default=[])
    loss_high: Curve = Field(default=[])
    grad_norm: Curve = Field(default=[])
    update_norm: Curve = Field(default=[])
    relative_error: Curve = Field(default=[])

    @model_validator(mode="after")
    def _one_value_a_step(self) -> Series:
        for name, values in self:
            if values and len(values) != len(self.step):
                raise ValueError(f"series {name} has {len(values)} values for {len(self.step)} steps")
        return self


class SideEnvironment(Part):
    isotrain: str
    python: str
    torch: str
    platform: str


class Ran(Part):
    """The reference, or a candidate as far as it is known."""

    label: str
    backend: str = ""
    device: str | None = None
    policy: str | None = None
    kernel: str | None = None
    layout: str | None = None
    emulated: bool = False
    random_weights: bool = False
    model: str | None = None
    dataset: str | None = None
    environment: SideEnvironment | None = None
    series: Series | None = None

    @property
    def name(self) -> str:
        return self.label

    @property
    def trace(self) -> Series:
        return self.series or Series()


class Trained(Ran):
    """The reference or a candidate that ran, with its series."""

    backend: str
    device: str
    policy: str
    kernel: str
    layout: str
    emulated: bool
    random_weights: bool
    model: str
    dataset: str
    environment: SideEnvironment
    series: Series


class LayerError(Part):
    """The error after one layer: accumulated, and local (given the reference's input). Relative L2 distances."""

    name: str
    relative_l2: Figure
    max_abs: Figure
    allowed: Figure
    local_relative_l2: Figure
    local_max_abs: Figure
    local_allowed: Figure


class Probe(Part):
    """The logits of the last evaluation. pcc: Pearson's correlation, which isn't judged."""

    relative_l2: Figure
    max_abs: Figure
    pcc: Figure
    allowed: Figure


class Epoch(Part):
    """Each figure of an evaluation, the reference's (reference_) and the allowed difference (allowed_)."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Figure] = Field(init=False)

    epoch: int
    loss: Figure
    reference_loss: Figure
    allowed_loss: Figure = None
    accuracy: Figure = None
    reference_accuracy: Figure = None
    allowed_accuracy: Figure = None

    @property
    def main(self) -> tuple[str, Figure, Figure] | None:
        """Accuracy if the task has it, else its first figure besides the loss: name, value, reference value."""
        given = {**self.__dict__, **self.__pydantic_extra__}
        names = [key.removeprefix("reference_") for key in given if key.startswith("reference_")]
        for name in ("accuracy", *names):
            if name != "loss" and name in (self.model_fields_set | self.__pydantic_extra__.keys()):
                return name, given[name], given.get(f"reference_{name}")
        return None


class Quantity(Part):
    """A judged quantity when it was nearest to its limit, or exceeded it most."""

    quantity: str
    step: Step
    error: Figure
    allowed: float
    ratio: Figure = Field(description="error over allowed; null: not finite.")


class Ended(Part):
    """The last step of a training that could not continue. The series end there."""

    step: int
    reason: str


class Distances(Part):
    """Relative L2 distances of whole series."""

    loss: Figure
    grad_norm: Figure
    update_norm: Figure


class Shown(Part):
    """What is shown about a candidate beside its verdict."""

    relative_l2: Distances
    series: Series
    layers: list[LayerError]
    probe: Probe
    metrics: list[Epoch]
    place: str | None = Field(
        default=None,
        description="Where to look: a layer, the head, its features or the evaluation; of a candidate that is outside.",
    )
    checks: list[Quantity] = Field(default=[], description="Results of earlier versions have none.")


class Judged(Trained, Shown):
    """A judged candidate. worst: the largest ratio of an error to what is allowed; null: not finite."""

    verdict: Literal["pass", "drift", "diverged"]
    reasons: list[str]
    worst: Figure
    first_step: Step | None
    layer: str | None
    cause: Literal["local", "accumulated"] | None
    error_budget: str
    draws: Count
    ended: Ended | None
    unknown: list[str] = Field(
        default=[], description="Operations that the error budget computes in float32, since it doesn't know them."
    )


class Uncompared(Ran):
    """A candidate whose process failed or whose trace was refused."""

    verdict: Literal["refused", "failed"]
    reasons: list[str] = Field(min_length=1)
    worst: None = None
    first_step: None = None
    layer: None = None
    cause: None = None
    place: None = None
    checks: list[Quantity] = Field(default=[])
    layers: list[LayerError] = Field(default=[])
    probe: None = None
    metrics: list[Epoch] = Field(default=[])


def _is_judged(candidate: Any) -> str:
    verdict = candidate.get("verdict") if isinstance(candidate, dict) else getattr(candidate, "verdict", None)
    return "uncompared" if verdict in ("refused", "failed") else "judged"


Candidate = Judged | Uncompared


class Equivalence(Part):
    """The difference of a candidate's final metric from the reference's, over seeds, with its 90 % interval."""

    label: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    verdict: Literal["equivalent", "different", "no decision", "failed"]


class Seeds(Part):
    """The test over several seeds. A candidate is equivalent if its whole interval lies within the margin."""

    n: Annotated[int, Field(ge=5)]
    metric: str
    margin: Positive
    candidates: list[Equivalence]


class Parity(Part):
    """A result of `isotrain parity compare`. Errors are relative L2 distances unless named otherwise."""

    kind: Literal["isotrain.parity/2"] = Field(alias="schema")
    created: str
    command: str
    status: Literal["complete", "partial"]
    notes: list[str]
    reference: Trained
    steps: Count
    weights_sha256: Sha256
    batches_sha256: Sha256
    config_sha256: Sha256 | None = None
    recipe: dict[str, Any]
    tolerance: dict[str, float]
    candidates: Annotated[
        list[
            Annotated[
                Annotated[Judged, Tag("judged")] | Annotated[Uncompared, Tag("uncompared")], Discriminator(_is_judged)
            ]
        ],
        Field(min_length=1),
    ]
    seeds: Seeds | None
