"""Tests that need torch_tpu, on a TPU or on XLA's CPU device (`stand/`): `make test-tpu` runs them on the latter."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.train import TrainResult, train
from isotrain.albert_core.runs.folder import RunFolder
from isotrain.backends import get_backend
from support.small_job import settings, write_dataset


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
def run(tmp_path: Path, small_data: Path) -> Callable[..., TrainResult]:
    """Trains the small job, on tpu unless `backend` says otherwise; `resume` is a run to go on with."""

    def start(resume: RunFolder | None = None, **overrides: Any) -> TrainResult:
        sets = settings(small_data, tmp_path, **({"backend": "tpu"} | overrides))
        return train(load_config(None, sets), resume=resume)

    return start
