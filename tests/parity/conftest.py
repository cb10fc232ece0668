"""A run whose reference and yardsticks are recorded once a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.parity_job import ParityJob, write_model
from support.whole_faults import WHOLE


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ParityJob]:
    threads = torch.get_num_threads()
    yield ParityJob(write_model(tmp_path_factory.mktemp("parity")))
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def whole_job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ParityJob]:
    """The same, and all of the model is trained."""
    threads = torch.get_num_threads()
    yield ParityJob(write_model(tmp_path_factory.mktemp("whole")), **WHOLE)
    torch.set_num_threads(threads)
