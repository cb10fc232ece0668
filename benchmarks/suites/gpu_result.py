"""The result of `gpu_check`."""

from __future__ import annotations

from typing import Any

from ..harness.document import Data, Device, Interval, Model, Part, Peaks, Policy

# The contenders that the others are compared with, in speed and in their features.
OURS, PORTABLE = "ours, auto", "ours, portable"


class Check(Part):
    """A kernel's error against float64. error: None if it was skipped; problem: what is wrong, or empty."""

    model: str
    kernel: str
    dtype: str
    allowed: float
    ran: str = ""
    error: float | None
    skipped: str
    problem: str


class Contender(Part):
    """One way to compute all texts. samples: seconds of each round."""

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


class Operator(Part):
    """The seconds of each way or why it can't run, and the fastest one, or an empty string."""

    seconds: dict[str, float | str]
    fastest: str


class GpuCheck(Part):
    """The whole result. problems: what is wrong; an empty list is a pass."""

    created: str
    device: Device
    policy: Policy
    size: dict[str, Any]
    model: Model
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
