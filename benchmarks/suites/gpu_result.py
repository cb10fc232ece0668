"""What `gpu_check` finds."""

from __future__ import annotations

from typing import Any

from ..harness.document import Data, Device, Interval, Part, Peaks, Policy

# Contenders that the others are held against: in speed, and in what they compute.
OURS, PORTABLE = "ours, auto", "ours, portable"


class Weights(Part):
    label: str
    random_weights: bool
    sha256: str


class Check(Part):
    """A kernel's error against float64. error: None where it was skipped; problem: what is wrong, or empty."""

    model: str
    kernel: str
    dtype: str
    allowed: float
    ran: str = ""
    error: float | None
    skipped: str
    problem: str


class Contender(Part):
    """All texts in one way; samples: seconds of each round."""

    seconds: Interval
    texts_per_second: float
    model_tflops: float
    share_of_peak: float
    samples: list[float]


class Throughput(Part):
    contenders: dict[str, Contender]
    speedup_of_ours: dict[str, Interval]
    skipped: dict[str, str]
    problems: list[str]

    @property
    def ours(self) -> Contender:
        return self.contenders[OURS]


class Operator(Part):
    """Seconds of each way, or why it can't run; the fastest of them, or empty."""

    seconds: dict[str, float | str]
    fastest: str


class GpuCheck(Part):
    """Everything. problems: what is wrong; an empty list is a pass."""

    created: str
    device: Device
    policy: Policy
    size: dict[str, Any]
    model: Weights
    texts: Data
    peaks: Peaks
    checks: list[Check]
    throughput: Throughput
    operators: dict[str, Operator]
    small_batch_seconds: dict[str, float]
    head_step_seconds: dict[str, float]
    environment: dict[str, Any]
    command: list[str]
    problems: list[str]
