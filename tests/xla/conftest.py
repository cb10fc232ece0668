"""Tests that need torch_xla: `make test-xla` runs them in the environment that has it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
from isotrain.backends import get_backend
from support.small_job import write_dataset
from support.small_runs import Run, starter


@pytest.fixture(scope="session", autouse=True)
def _needs_torch_xla() -> None:
    if importlib.util.find_spec("torch_xla") is None:
        pytest.skip("torch_xla is not installed here: make test-xla")
    os.environ["PJRT_DEVICE"] = "CPU"


@pytest.fixture(scope="session")
def backend(_needs_torch_xla: None) -> Any:
    return get_backend("xla")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "intents")


@pytest.fixture
def run(tmp_path: Path, small_data: Path) -> Run:
    return starter(small_data, tmp_path, "xla")
