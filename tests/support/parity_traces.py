"""Traces made by hand: a float64 one, and devices that are off from it by a known noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from isotrain.benchmarks.outcome.trace_header import TraceHeader
from isotrain.benchmarks.parity.trace import Trace

STEPS, TEXTS, LABELS, LAYERS, TOKENS, WIDTH = 30, 64, 77, 3, 200, 64
NOISE = 1e-4


def header(compute: str = "bfloat16", **changes: Any) -> TraceHeader:
    known = {
        "label": f"device:{compute}",
        "backend": "device",
        "device": "a device",
        "emulated": False,
        "kernel": "portable 1",
        "layout": "packed",
        "model": "random:tiny (random weights)",
        "random_weights": True,
        "dataset": "by hand",
        "environment": {"isotrain": "0", "python": "3", "torch": "2", "platform": "any"},
        "config": {},
        "policy": {"compute": compute, "param": compute, "label": compute},
        "recipe": {"learning_rate": 1e-3, "seed": 1},
        "weights_sha256": "a" * 64,
        "probe_sha256": "b" * 64,
        "batches": [f"{step:064d}" for step in range(STEPS)],
        "metrics": [{"epoch": 1, "step": STEPS, "accuracy": 0.5, "loss": 1.0}],
        "adam_on_device": None,
        "error_budget": {"label": "ideal bfloat16", "backend": "ideal", "dtype": "bfloat16", "draws": True},
        "replayed_sha256": None,
        "dropout_off": False,
        "ended": None,
    }
    return TraceHeader.model_validate(known | changes)


def with_header(trace: Trace, **changes: Any) -> Trace:
    """`trace` with other values in its header."""
    return replace(trace, header=TraceHeader.model_validate(trace.header.document() | changes))


def exact() -> Trace:
    generator = np.random.default_rng(0)
    arrays = {
        "loss": 4.0 - 0.01 * np.arange(STEPS),
        "grad_norm": 2.0 + generator.random(STEPS),
        "update_norm": 0.1 + 0.01 * generator.random(STEPS),
        "probe_logits": generator.standard_normal((2, TEXTS, LABELS)),
        "states": generator.standard_normal((LAYERS + 1, TOKENS, WIDTH)),
    }
    return Trace(header("float64"), arrays | {"replay": arrays["states"][1:]})


def noisy(seed: int, noise: float = NOISE, **changes: Any) -> Trace:
    """A right device: every value off by `noise`, at random."""
    generator = np.random.default_rng(seed)
    arrays = exact().arrays
    return Trace(
        header(**{"replayed_sha256": exact().states_sha256()} | changes),
        {name: array + noise * generator.standard_normal(array.shape) for name, array in arrays.items()},
    )
