"""How pytest-xdist shares out the tests: a file's stay in one process, and so do all of tests/distributed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from support.scheduling import ByFile, group_of

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


def run_in_two_processes(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "xdist.plugin", "-n", "2", "-p", "no:cacheprovider", "-q"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_each_file_runs_in_one_process(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "conftest.py").write_text(HOOK)
    for name in ("first", "second", "third"):
        (tmp_path / f"test_{name}.py").write_text(FILE.format(log=str(log), name=name))
    done = run_in_two_processes(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    ran: dict[str, set[str]] = defaultdict(set)
    for line in log.read_text().splitlines():
        file, process = line.split()
        ran[file].add(process)
    assert [len(processes) for processes in ran.values()] == [1, 1, 1]
    assert set().union(*ran.values()) == {"gw0", "gw1"}


def test_tests_that_kill_their_process_fail_once_and_the_others_run(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(HOOK)
    dies = "import os\ndef test_before(): pass\ndef test_dies(): os.abort()\ndef test_after(): pass\n"
    for name in ("first", "second", "third", "fourth"):
        (tmp_path / f"test_{name}.py").write_text(dies)
    done = run_in_two_processes(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "4 failed, 8 passed" in done.stdout


def test_a_process_gets_tests_only_once_it_has_collected_them() -> None:
    tests = [f"test_{file}.py::test_{number}" for file in "abcd" for number in range(4)]
    scheduler = ByFile(Mock(getvalue=lambda _: ["popen"] * 2, option=SimpleNamespace(loadscopereorder=False)))
    first, second, third, fourth = (Mock(shutting_down=False) for _ in range(4))
    for node in (first, second):
        scheduler.add_node(node)
    for node in (first, second):
        scheduler.add_node_collection(node, tests)
    scheduler.schedule()
    # Both die, and those that replace them say late which tests they know.
    assert scheduler.remove_node(first) == tests[0]
    scheduler.add_node(third)
    assert scheduler.remove_node(second) == tests[4]
    scheduler.add_node(fourth)
    for node, others in ((third, [fourth]), (fourth, [])):
        scheduler.add_node_collection(node, tests)
        scheduler.schedule()
        node.send_runtest_some.assert_called()
        for other in others:
            other.send_runtest_some.assert_not_called()
            other.shutdown.assert_not_called()
    calls = [*third.send_runtest_some.call_args_list, *fourth.send_runtest_some.call_args_list]
    sent = [index for call in calls for index in call.args[0]]
    assert len(sent) == len(set(sent))
    assert not {0, 4} & set(sent)


def test_the_suite_is_shared_out_so(request: pytest.FixtureRequest) -> None:
    names = [hook.plugin_name for hook in request.config.hook.pytest_xdist_make_scheduler.get_hookimpls()]
    assert str(TESTS / "conftest.py") in names
