"""The specifications of the processes of an end-to-end comparison."""

from __future__ import annotations

from ..harness.document import Spec
from ..outcome.end_to_end import TimedLoop


class LoopSpec(Spec):
    """What `measure_loop` times: `steps` steps and `validation_batches` batches. padding: "dynamic" or "padded"."""

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
    """What `count` counts: the run in the folder `run`, and the whole runs of loops, each given by its processes."""

    run: str
    loops: list[list[TimedLoop]]
    dtype: str
    threads: int | None
