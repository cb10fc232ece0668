"""A run whose reference and error budgets are recorded once a session."""

from __future__ import annotations

import pytest
from support.parity_job import ParityJob, write_model
from support.whole_faults import WHOLE


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> ParityJob:
    return ParityJob(write_model(tmp_path_factory.mktemp("parity")))


@pytest.fixture(scope="session")
def whole_job(tmp_path_factory: pytest.TempPathFactory) -> ParityJob:
    """The same, and all of the model is trained."""
    return ParityJob(write_model(tmp_path_factory.mktemp("whole")), **WHOLE)
