"""The pytest-benchmark suites run, untimed, on the tiny model, and compare with what they saved before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import forks

ROOT = Path(__file__).resolve().parents[2]
SUITE = "isotrain.benchmarks.suites"


def suite(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What `make bench-suite` runs, on the tiny model and the cpu backend."""
    command = ["-m", "pytest", "-p", f"{SUITE}.plugin", "--pyargs", SUITE, "-p", "no:cacheprovider"]
    command += ["-o", "python_files=bench_*.py", "-o", "addopts=--import-mode=importlib"]
    command += ["--suite-model=random:tiny", "--suite-dtype=float32"]
    # In a process that pytest-xdist started, pytest-benchmark saves nothing.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return forks.run([*command, *arguments], cwd=cwd, env=kept | {"OMP_NUM_THREADS": "1"})


def test_every_kernel_and_step_runs(tmp_path: Path) -> None:
    done = suite("--benchmark-disable", "-v", "-k", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for name in ("cpu-portable", "cpu-transformers", "cpu-train_step", "cpu-head_step", "cpu-full_step"):
        assert f"[{name}] PASSED" in done.stdout


def test_a_second_run_is_compared_with_the_first(tmp_path: Path) -> None:
    one = ("cpu-head_step", "--benchmark-storage", str(tmp_path / "saved"))
    first = suite("-k", *one, "--benchmark-autosave", cwd=tmp_path)
    assert first.returncode == 0, first.stdout[-3000:]
    saved = json.loads(next((tmp_path / "saved").rglob("*.json")).read_text(encoding="utf-8"))
    assert saved["benchmarks"][0]["extra_info"]["device"]
    second = suite("-k", *one, "--benchmark-compare", cwd=tmp_path)
    assert second.returncode == 0, second.stdout[-3000:]
    assert "(0001" in second.stdout


def test_the_suites_are_no_part_of_the_tests() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "benchmarks"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
