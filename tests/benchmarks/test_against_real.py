"""`isotrain bench --against` with real workers: a planted slowdown is found, and nothing where there is nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from isotrain.benchmarks.against.checkout import FOLDERS
from isotrain.benchmarks.harness.environment import PACKAGE_ROOT
from isotrain.benchmarks.outcome.against import Against
from isotrain.benchmarks.regression.verdict import INCONCLUSIVE, REFUSED, REGRESSED, SAME
from support import forks
from support.workloads import LINE

pytestmark = pytest.mark.slow

# What is added to the portable kernel of the newer version: its work done twice, or its rows in another order.
TWICE = """
_once = PortableEncoder.__call__

def _changed(self, batch):
    _once(self, batch)
    return _once(self, batch)

PortableEncoder.__call__ = _changed
"""
SWAPPED = TWICE.replace("return _once(self, batch)", "return _once(self, batch).flip(0)").replace(
    "    _once(self, batch)\n", "", 1
)


def copy(folder: Path, planted: str = "") -> Path:
    """The package as a folder of the name isotrain, without native parts."""
    root = folder / "isotrain"
    for name in FOLDERS:
        shutil.copytree(
            PACKAGE_ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "results", "*.so")
        )
    for name in ("__init__.py", "pyproject.toml"):
        shutil.copy(PACKAGE_ROOT / name, root / name)
    with (root / "kernels" / "packed" / "portable.py").open("a", encoding="utf-8") as file:
        file.write(planted)
    return root


TEXTS = ("--model", "random:tiny", "--workload", "forward", "--layout", "padded")


def bench(package: Path, against: Path, out: Path, *options: str) -> tuple[int, Against, str]:
    """The command of the checkout `package`: its exit code, its result and its table."""
    command = ["-P", "-m", "isotrain.cli", "bench", "--against", str(against), "--out", str(out)]
    done = forks.run(
        [*command, "--dtype", "float32", "--seconds", "1", *options],
        env={**os.environ, "PYTHONPATH": str(package.parent), "COLUMNS": "120"},
        cwd=out.parent,
        forking=True,
    )
    assert out.is_file(), done.stderr
    return done.returncode, Against.model_validate_json(out.read_text(encoding="utf-8")), done.stdout


def test_a_kernel_that_does_its_work_twice_is_a_regression_and_the_other_is_none(tmp_path: Path) -> None:
    slow, here = copy(tmp_path / "after", TWICE), copy(tmp_path / "before")
    kernels = ("--kernel", "portable", "--kernel", "transformers")
    pairs = ("--gate", "20%", "--processes", "3", "--blocks", "10")
    code, result, shown = bench(slow, here, tmp_path / "found.json", *TEXTS, *kernels, *pairs)
    found = {target.label.split()[3]: target for target in result.targets}
    assert code == 1
    assert found["portable"].verdict == REGRESSED, found["portable"]
    assert found["portable"].time is not None
    assert 1.2 < found["portable"].time.median < 3.0
    assert found["portable"].cpu_time is not None
    assert found["portable"].cpu_time.median > 1.2
    assert found["transformers"].verdict in (SAME, INCONCLUSIVE), found["transformers"]
    assert "regression" in shown
    assert result.before.sources_sha256 != result.after.sources_sha256


def test_a_faster_wrong_answer_is_refused(tmp_path: Path) -> None:
    wrong, here = copy(tmp_path / "after", SWAPPED), copy(tmp_path / "before")
    pair = ("--kernel", "portable", "--processes", "1", "--blocks", "2")
    code, result, _ = bench(wrong, here, tmp_path / "found.json", *TEXTS, *pair)
    assert (code, result.targets[0].verdict) == (2, REFUSED)
    assert "logits differ" in result.targets[0].reason


def test_a_module_of_ones_own_is_read_by_both(tmp_path: Path) -> None:
    here = copy(tmp_path / "before")
    (tmp_path / "own.py").write_text(LINE, encoding="utf-8")
    pair = ("own.py:Line", "--workload", "full_step", "--processes", "1", "--blocks", "2")
    code, result, shown = bench(copy(tmp_path / "after"), here, tmp_path / "found.json", *pair)
    (target,) = result.targets
    assert (code, target.verdict) == (3, INCONCLUSIVE), target.reason
    assert target.time is not None
    assert target.label == "cpu full_step Line"
    assert "own.py:Line is the same file for both checkouts" in " ".join(shown.split())
