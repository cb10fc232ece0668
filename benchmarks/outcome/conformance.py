"""A result of `isotrain conformance`: one backend, and what each check found."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ..harness.document import ChoiceMade, Device, NotNegative, Part, Policy

CONFORMANCE: Literal["isotrain.conformance/1"] = "isotrain.conformance/1"

Status = Literal["pass", "FAIL", "unsupported", "crash", "hang"]
# The backend breaks a clause.
BROKEN: tuple[Status, ...] = ("FAIL", "crash", "hang")


class Support(Part):
    """What a backend says of itself, not judged."""

    device: Device
    dtypes: dict[str, Policy | str] = Field(description="By dtype: what is computed, or why it is refused.")
    kernels: dict[str, str]
    lacks: list[str] = Field(default=[], description="What it doesn't offer besides, and why.")
    choices: list[ChoiceMade] = Field(default=[], description="What was measured on this device before, and holds.")


class Rate(Part):
    """How fast the device did what was timed."""

    value: NotNegative
    unit: Literal["TFLOP/s", "GB/s"]
    share: NotNegative | None = Field(default=None, description="Of the measured peak; null if there is none.")


class Judged(Part):
    """What a check found."""

    status: Status
    share: NotNegative | None = Field(default=None, description="The largest error as a share of its budget.")
    detail: str = Field(default="", description="What was measured, or why it doesn't pass.")
    lacks: str = Field(default="", description="What it passes without, and why.")
    rate: Rate | None = None


class CheckResult(Judged):
    name: str
    group: str
    subject: str
    dtype: str = Field(description="Empty if no dtype matters.")
    mode: Literal["test", "grad", "perf"]
    clause: str = Field(description="What a backend must do.")
    seconds: NotNegative

    @property
    def is_broken(self) -> bool:
        return self.status in BROKEN


class Conformance(Part):
    """A result of `isotrain conformance`."""

    kind: Literal["isotrain.conformance/1"] = Field(alias="schema")
    created: str
    status: Literal["complete", "interrupted", "not opened"]
    backend: str
    options: dict[str, Any]
    seed: int
    versions: dict[str, str]
    support: Support | None = Field(description="null if the backend can't say it.")
    checks: list[CheckResult]

    @property
    def broken(self) -> list[CheckResult]:
        return [check for check in self.checks if check.is_broken]
