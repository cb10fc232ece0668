"""How pytest-xdist shares out the tests: a file's stay in one process, and so do all of tests/distributed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from support.scheduling import group_of

TESTS = Path(__file__).resolve().parents[1]
HOOK = """
def pytest_xdist_make_scheduler(config, log):
    from support.scheduling import ByFile
    return ByFile(config, log)
"""
FILE = """
import os, pytest

@pytest.mark.parametrize("number", range(8))
def test(number):
    with open({log!r}, "a") as log:
        log.write(f"{name} {{os.environ['PYTEST_XDIST_WORKER']}}\\n")
"""


@pytest.mark.parametrize(
    ("test", "group"),
    [
        ("tests/core/test_keys.py::test_seed", "tests/core/test_keys.py"),
        ("tests/core/test_keys.py::test_seed[a::b/c]", "tests/core/test_keys.py"),
        ("tests/distributed/test_ranks.py::test_two[x]", "tests/distributed"),
        ("tests/distributed/test_orphans.py::test_one", "tests/distributed"),
    ],
)
def test_a_tests_group_follows_from_its_name(test: str, group: str) -> None:
    assert group_of(test) == group


def test_each_file_runs_in_one_process(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "conftest.py").write_text(HOOK)
    for name in ("first", "second", "third"):
        (tmp_path / f"test_{name}.py").write_text(FILE.format(log=str(log), name=name))
    environment = os.environ | {"PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "xdist.plugin", "-n", "2", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ran: dict[str, set[str]] = defaultdict(set)
    for line in log.read_text().splitlines():
        file, process = line.split()
        ran[file].add(process)
    assert [len(processes) for processes in ran.values()] == [1, 1, 1]
    assert set().union(*ran.values()) == {"gw0", "gw1"}


def test_the_suite_is_shared_out_so(request: pytest.FixtureRequest) -> None:
    names = [hook.plugin_name for hook in request.config.hook.pytest_xdist_make_scheduler.get_hookimpls()]
    assert str(TESTS / "conftest.py") in names
