"""A job small enough to train in a second: 6 labels, 120 texts, the tiny random encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isotrain.albert_core.config_file import ResolvedConfig, load_config
from isotrain.albert_core.run import RunFolder
from isotrain.albert_core.train import TrainResult, train
from support.small_job import settings, write_dataset


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "intents")


@pytest.fixture
def configure(tmp_path: Path, small_data: Path) -> Callable[..., ResolvedConfig]:
    """A resolved configuration of the small job, with overrides by key."""

    def build(**overrides: Any) -> ResolvedConfig:
        return load_config(None, settings(small_data, tmp_path, **overrides))

    return build


@pytest.fixture
def run(configure: Callable[..., ResolvedConfig]) -> Callable[..., TrainResult]:
    """Trains the small job with overrides; `resume` is a run to go on with."""

    def start(resume: RunFolder | None = None, **overrides: Any) -> TrainResult:
        return train(configure(**overrides), resume=resume)

    return start
