"""Parity of what torch.compile compiles: right programs pass like any other run, and a wrong one is caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain.benchmarks.parity.judge import judge
from isotrain.kernels import inductor
from support.parity_job import FLOAT32, ParityJob, write_model

SMALL: dict[str, Any] = {"num_epochs": 1, "max_steps": 3, "layout": "padded"}


def half_a_percent_off(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., list[torch.Tensor]]:
    """A compiler whose programs give a little too much."""
    return lambda *inputs: [
        output * 1.005 if output.is_floating_point() else output for output in graph.forward(*inputs)
    ]


@pytest.mark.parametrize(
    ("keys", "compiled"),
    [
        ({"feature_cache": False}, {"kernel": "compile"}),
        ({"freeze_encoder": False, "learning_rate": 1e-3, "max_grad_norm": 1.0}, {"torch_compile": "default"}),
    ],
    ids=["a frozen encoder", "a whole model"],
)
def test_a_compiled_run_is_judged(
    keys: dict[str, Any], compiled: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ParityJob(write_model(tmp_path), **SMALL | keys)
    for compiler, passes in (("aot_eager", True), (half_a_percent_off, False)):
        monkeypatch.setattr(inductor, "COMPILER", compiler)
        trace = job.record("candidate", **FLOAT32 | compiled)
        assert "compile" in trace.header.kernel
        found = judge(job.reference, trace, job.error_budgets(trace))
        assert (found.verdict == "pass") == passes, found.reasons
