"""What the processes of an end-to-end comparison are told."""

from __future__ import annotations

from ..harness.document import Spec
from ..outcome.end_to_end import TimedLoop


class LoopSpec(Spec):
    """What is timed. padding: "dynamic" or "padded"; steps and validation_batches: how many of them."""

    backend: str
    model: str
    dataset: str
    tokenizer: str | None
    dtype: str
    max_length: int
    padding: str
    batch_size: int
    learning_rate: float
    mlp_hidden_size: int
    seed: int
    threads: int | None
    steps: int
    validation_batches: int


class CountSpec(Spec):
    """What is counted: the run in the folder `run`, and the runs that `loops` (each its processes) are parts of."""

    run: str
    loops: list[list[TimedLoop]]
    dtype: str
    threads: int | None
