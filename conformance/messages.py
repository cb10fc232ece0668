"""What a worker and its parent say to each other. Nothing here imports torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ..benchmarks.harness.document import Part, Peaks
from ..benchmarks.outcome.conformance import Support

# The requests for what the backend says of itself, and for its measured peaks. Any other one is the name of a case.
SUPPORT, PEAKS = "support", "peaks"


class WorkerSpec(Part):
    """The backend under test, and the file descriptors of the pipes.

    sets: further options, as `--set` has them.
    """

    backend: str
    options: dict[str, Any]
    sets: list[str]
    seed: int
    requests: int
    answers: int


class Opening(Part):
    """Whether the backend is open.

    status: "refused" if the user asked for what doesn't exist, "FAIL" if the backend breaks its word. reason, fix: of
    the probe, if nothing is wrong. options: all those that it was opened with.
    """

    status: Literal["open", "absent", "refused", "FAIL"]
    reason: str
    fix: str = ""
    options: dict[str, Any] = Field(default={})


class Described(Part):
    """What a backend says of itself, or why it can't."""

    support: Support | None
    problem: str = ""


class Measured(Part):
    """The peaks of a backend in each dtype that it has, and why one of them can't be measured."""

    peaks: list[Peaks]
    lacks: list[str]
