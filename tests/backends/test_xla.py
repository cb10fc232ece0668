"""What the xla backend does without torch_xla: which devices keep compiled programs, and where."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from isotrain.backends.xla import CACHE_PATH_VARIABLE, XlaBackend


@pytest.fixture
def initialized(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    monkeypatch.setenv("ISOTRAIN_CACHE", str(tmp_path))
    monkeypatch.delenv(CACHE_PATH_VARIABLE, raising=False)
    return []


def use_cache(device_type: str, initialized: list[str]) -> None:
    backend = XlaBackend.__new__(XlaBackend)
    backend.device_type = device_type
    backend._xla = SimpleNamespace(__version__="2.9.0")
    backend._runtime = SimpleNamespace(initialize_cache=initialized.append)
    backend._use_compile_cache()


def test_compiled_programs_are_kept_by_device_and_version(initialized: list[str], tmp_path: Path) -> None:
    use_cache("TPU", initialized)
    assert initialized == [str(tmp_path / "xla" / "tpu-2.9.0")]
    assert Path(initialized[0]).is_dir()


def test_the_host_that_could_not_load_them_keeps_none(initialized: list[str], tmp_path: Path) -> None:
    use_cache("CPU", initialized)
    assert not initialized
    assert not list(tmp_path.iterdir())


def test_a_cache_that_the_user_named_is_left_alone(initialized: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_PATH_VARIABLE, "/somewhere")
    use_cache("TPU", initialized)
    assert not initialized
