"""A run whose reference and yardsticks are recorded once a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.parity_job import ParityJob, write_model


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ParityJob]:
    threads = torch.get_num_threads()
    yield ParityJob(write_model(tmp_path_factory.mktemp("parity")))
    torch.set_num_threads(threads)
