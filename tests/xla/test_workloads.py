"""A user's own workload on the XLA backend."""

from __future__ import annotations

from pathlib import Path

import pytest
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.train import train
from support.small_job import losses
from support.workloads import EXAMPLES, own_settings


@pytest.mark.parametrize("name", ["lora_gpt", "small_convnet"])
def test_an_example_has_the_cpu_backend_s_losses(tmp_path: Path, name: str) -> None:
    keys = {"max_steps": 5, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0}
    found = [
        train(load_config(None, own_settings(str(EXAMPLES / f"{name}.py"), tmp_path, backend=backend, **keys)))
        for backend in ("xla", "cpu")
    ]
    got, want = (dict(losses(result)) for result in found)
    assert got == pytest.approx(want, rel=1e-4)
