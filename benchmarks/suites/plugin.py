"""A pytest plugin with what the suites share: the model's options, the kernels that work here, fenced rounds.

Imports are absolute, since pytest names a suite's module by its folder, which may have any name in a checkout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from isotrain.albert_core.model.encoder import LoadedEncoder, load_encoder
from isotrain.backends import Backend, backend_class, get_backend, list_backends
from isotrain.benchmarks.harness.texts import Texts, embedded_texts
from isotrain.benchmarks.harness.workloads import Workload

BATCH_SIZE, BATCHES, MAX_LENGTH, NUM_LABELS, SEED = 8, 4, 128, 77, 23
ROUNDS = 5


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suite-model", default="random:albert-base-v2", help="Encoder of the suites.")
    parser.addoption("--suite-dtype", default="bfloat16", help="Its dtype.")


def opened_backends() -> list[Backend]:
    """Every backend that can be used here."""
    return [get_backend(name) for name in list_backends() if backend_class(name).probe().ok]


def usable_kernels(backend: Backend) -> list[str]:
    """The backend's kernels that can run here, and "transformers". Compiling one takes longer than the suite."""
    return [*(name for name, found in backend.kernels().items() if found.ok and name != "compile"), "transformers"]


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--suite-dtype"))


@pytest.fixture(scope="session")
def encoder(request: pytest.FixtureRequest) -> LoadedEncoder:
    return load_encoder(str(request.config.getoption("--suite-model")), SEED)


@pytest.fixture(scope="session")
def texts(encoder: LoadedEncoder) -> Texts:
    """Four batches of texts of Banking77's lengths."""
    vocabulary = encoder.weights.config.vocab_size
    return embedded_texts(BATCHES * BATCH_SIZE, MAX_LENGTH, vocabulary, NUM_LABELS, SEED)


@pytest.fixture
def in_rounds(benchmark: Any) -> Callable[[Workload], None]:
    """`in_rounds(workload)` times one pass over the batches per round, from fence to fence (rule 2)."""

    def run(workload: Workload) -> None:
        benchmark.extra_info.update(kernel=" ".join(workload.kernel()), device=workload.backend.info().name)

        def one_pass() -> None:
            for index in range(len(workload.batches)):
                workload.step(index)
            workload.fence()

        with workload.context():
            benchmark.pedantic(one_pass, setup=workload.begin, rounds=ROUNDS, warmup_rounds=1)
        problems = workload.read()
        assert problems == []

    return run
