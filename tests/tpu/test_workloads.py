"""The shipped examples of users' own workloads on the TPU backend."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command import Invoke
from support.workloads import NAMES, check_measured, check_parity, check_trained


@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains_as_on_the_cpu(tmp_path: Path, name: str) -> None:
    check_trained(name, "tpu", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_measured(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    check_measured(name, "tpu", monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains_like_float64(invoke: Invoke, name: str) -> None:
    check_parity(invoke, name, "tpu")
