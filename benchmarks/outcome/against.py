"""A result of `isotrain bench --against`: two checkouts, and the ratios of their blocks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..harness.document import Interval, NotNegative, Part, Positive, Sha256
from .model import Bench, Status

AGAINST: Literal["isotrain.against/1"] = "isotrain.against/1"


class CheckoutResult(Part):
    """One side. label: as it was named, with its revision. result: what a run of this checkout alone would hold."""

    label: str
    sources_sha256: Sha256 = Field(description="Of the names and contents of the files that run.")
    result: Bench


class PairedTarget(Part):
    """What the pairs say of one target. Ratios are after over before: 1.1 is a tenth slower."""

    label: str
    time: Interval | None = Field(description="null where the target is refused.")
    cpu_time: Interval | None = Field(description="CPU time of all threads of the process.")
    ratios: list[list[Positive]] = Field(
        description="Of time, a row a pair of processes, a value for two blocks of each, in the order A B B A."
    )
    verdict: str
    reason: str
    detectable: NotNegative | None = Field(description="The smallest rise of time that would have been seen.")
    seconds: NotNegative = Field(description="How long its pairs took.")


class Against(Part):
    """A result of `isotrain bench --against`."""

    kind: Literal["isotrain.against/1"] = Field(alias="schema")
    created: str
    status: Status
    notes: list[str]
    gate: Annotated[float, Field(ge=0, lt=1)]
    on_undecided: str
    before: CheckoutResult
    after: CheckoutResult
    targets: list[PairedTarget]

    @model_validator(mode="after")
    def _both_sides_have_its_targets(self) -> Against:
        if not len(self.targets) == len(self.before.result.targets) == len(self.after.result.targets):
            raise ValueError("it has other targets than its two sides")
        return self
