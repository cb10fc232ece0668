"""What the report reads of a result of `isotrain parity`; as with the others, anything else in it is left alone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from ...outcome.model import emulated_name
from .documents import Part, Text

Curve = list[FiniteFloat | None]


class Trace(Part):
    """A run's figures by step; null where a step has none."""

    step: list[int] = Field(default_factory=list)
    loss: Curve = Field(default_factory=list)
    loss_low: Curve = Field(default_factory=list)
    loss_high: Curve = Field(default_factory=list)
    grad_norm: Curve = Field(default_factory=list)
    update_norm: Curve = Field(default_factory=list)
    relative_error: Curve = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_value_a_step(self) -> Trace:
        for name, values in self:
            if values and len(values) != len(self.step):
                raise ValueError(f"series {name} has {len(values)} values for {len(self.step)} steps")
        return self


class Ran(Part):
    """Whoever ran the steps: the reference, or a candidate as far as it came."""

    label: Text
    backend: Text = ""
    device: Text | None = None
    policy: Text | None = None
    kernel: Text | None = None
    emulated: bool = False
    random_weights: bool = False
    model: Text | None = None
    environment: dict[str, Any] | None = None
    series: Trace | None = None

    @property
    def name(self) -> str:
        return emulated_name(self.label, self.backend) if self.emulated else self.label

    @property
    def trace(self) -> Trace:
        return self.series or Trace()


class LayerError(Part):
    """The error after one layer of the layer: accumulated, and local (from the reference's own input)."""

    name: Text
    relative_l2: FiniteFloat | None = None
    max_abs: FiniteFloat | None = None
    allowed: FiniteFloat | None = None
    local_relative_l2: FiniteFloat | None = None
    local_max_abs: FiniteFloat | None = None
    local_allowed: FiniteFloat | None = None


class Probe(Part):
    relative_l2: FiniteFloat | None = None
    max_abs: FiniteFloat | None = None
    pcc: FiniteFloat | None = None
    allowed: FiniteFloat | None = None


class Epoch(Part):
    epoch: int
    accuracy: FiniteFloat | None = None
    reference_accuracy: FiniteFloat | None = None
    loss: FiniteFloat | None = None
    reference_loss: FiniteFloat | None = None
    allowed_accuracy: FiniteFloat | None = None
    allowed_loss: FiniteFloat | None = None


class Quantity(Part):
    """A judged quantity at the moment at which it came nearest to its limit, or exceeded it most."""

    quantity: Text
    step: int
    error: FiniteFloat | None = None
    allowed: FiniteFloat
    ratio: FiniteFloat | None = None


class Candidate(Ran):
    """A candidate judged; of one whose process failed or whose trace was refused, only the label and the reasons."""

    verdict: Literal["pass", "drift", "diverged", "refused", "failed"]
    reasons: list[Text] = Field(default_factory=list)
    worst: FiniteFloat | None = None
    first_step: int | None = None
    layer: Text | None = None
    cause: Text | None = None
    place: Text | None = None
    checks: list[Quantity] = Field(default_factory=list)
    layers: list[LayerError] = Field(default_factory=list)
    probe: Probe | None = None
    metrics: list[Epoch] = Field(default_factory=list)


class Equivalence(Part):
    """The difference of a candidate's final metric from the reference's, over seeds, with its interval."""

    label: Text
    difference: FiniteFloat | None = None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    reason: Text = ""
    verdict: Text


class Seeds(Part):
    """The multi-seed test: equivalent is whose whole interval lies within the margin."""

    n: int
    metric: Text
    margin: FiniteFloat
    candidates: list[Equivalence]


class Parity(Part):
    """A result of `isotrain parity compare`."""

    kind: Literal["isotrain.parity/2"] = Field(alias="schema")
    created: Text
    status: Text
    notes: list[Text] = Field(default_factory=list)
    command: Text | list[Text] = ""
    batches_sha256: Text | None = None
    config_sha256: Text | None = None
    weights_sha256: Text | None = None
    steps: int
    tolerance: dict[Text, FiniteFloat] = Field(default_factory=dict)
    reference: Ran
    candidates: Annotated[list[Candidate], Field(min_length=1)]
    seeds: Seeds | None = None
