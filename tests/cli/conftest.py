"""A run that the commands have something to say of."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command import Invoke
from support.small_job import write_dataset


@pytest.fixture
def small_run(invoke: Invoke, tmp_path: Path) -> Path:
    """A finished run of the tiny encoder."""
    write_dataset(tmp_path / "data")
    (tmp_path / "small.yaml").write_text(
        "dataset_id: ./data\nmodel_name: random:tiny\ndtype: float32\nmax_length: 32\nmlp_hidden_size: 16\n"
        "num_epochs: 2\nlearning_rate: 1.0e-2\nrun_name: small\n"
    )
    code, out, err = invoke("train", "small.yaml")
    assert code == 0, err
    assert "random weights" in out
    assert "runs/small" in out
    return tmp_path / "runs" / "small"
