"""Models small enough for twenty steps in a second, as folders that both sides load by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_models import write_models


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))
