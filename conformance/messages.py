"""What a worker and its parent say to each other. Nothing here imports torch."""

from __future__ import annotations

from typing import Any, Literal

from ..benchmarks.harness.document import Part
from ..benchmarks.outcome.conformance import Support

# The request for what the backend says of itself. Any other one is the name of a case.
SUPPORT = "support"


class WorkerSpec(Part):
    """The backend under test, and the file descriptors of the pipes."""

    backend: str
    options: dict[str, Any]
    seed: int
    requests: int
    answers: int


class Opening(Part):
    """Whether the backend is open.

    status: "refused" if the user asked for what doesn't exist, "FAIL" if the backend breaks its word. reason, fix: of
    the probe, if nothing is wrong.
    """

    status: Literal["open", "absent", "refused", "FAIL"]
    reason: str
    fix: str = ""


class Described(Part):
    """What a backend says of itself, or why it can't."""

    support: Support | None
    problem: str = ""
