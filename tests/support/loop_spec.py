"""What a process of the experiment's loop is told, for data of seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isotrain.benchmarks.end_to_end.specs import LoopSpec


def loop_spec(data: Path, **changes: Any) -> LoopSpec:
    """The tiny model in float32 at batch 8, dynamically padded; `changes` by key."""
    known: dict[str, Any] = {
        "backend": "cpu",
        "model": "random:tiny",
        "dataset": str(data),
        "tokenizer": None,
        "dtype": "float32",
        "max_length": 32,
        "padding": "dynamic",
        "batch_size": 8,
        "learning_rate": 1e-2,
        "mlp_hidden_size": 16,
        "seed": 1,
        "threads": None,
        "steps": 14,
        "validation_batches": 2,
        "result": "",
    }
    return LoopSpec(**known | changes)
