"""Tests that need torch_tpu, on a TPU or on XLA's CPU device (`stand/`): `make test-tpu` runs them on the latter."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from isotrain.backends import get_backend
from support.small_job import write_dataset
from support.small_runs import Run, starter


@pytest.fixture(scope="session", autouse=True)
def _needs_torch_tpu() -> None:
    if importlib.util.find_spec("torch_tpu") is None:
        pytest.skip("torch_tpu is not installed here: make test-tpu")


@pytest.fixture(scope="session")
def backend(_needs_torch_tpu: None) -> Any:
    return get_backend("tpu")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "intents")


@pytest.fixture
def run(tmp_path: Path, small_data: Path) -> Run:
    return starter(small_data, tmp_path, "tpu")
