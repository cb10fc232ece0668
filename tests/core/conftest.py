"""Jobs small enough to train in a second: 6 labels and 120 texts, or 32 questions, and the tiny random encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from isotrain.albert_core.config.load import ResolvedConfig, load_config
from isotrain.albert_core.loop.train import TrainResult, train
from isotrain.albert_core.model.names import RANDOM_ARCHITECTURES
from isotrain.albert_core.runs.folder import RunFolder
from support.small_job import settings, write_dataset
from support.small_questions import write_questions
from support.tiny_models import write_models


@pytest.fixture(scope="module", autouse=True)
def _few_words() -> Iterator[None]:
    """The texts here have some hundred different words, and rows for 30,000 are a quarter of a whole model's step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RANDOM_ARCHITECTURES["tiny"], "vocab_size", 1000)
        yield


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


@pytest.fixture(scope="session")
def dropping_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT whose training draws dropout, which the random encoders don't."""
    return write_models(tmp_path_factory.mktemp("dropping"), dropout=0.1)["bert"]


@pytest.fixture(scope="session")
def question_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions") / "data", sentences=6)


@pytest.fixture
def reading(question_data: Path) -> dict[str, Any]:
    """The small job's keys, changed to one of reading in several windows a context."""
    return {
        "task": "question_answering",
        "dataset_id": str(question_data),
        "freeze_encoder": False,
        "max_length": 64,
        "doc_stride": 20,
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "checkpoint_metric": "eval/f1",
        "threads": 1,
    }
