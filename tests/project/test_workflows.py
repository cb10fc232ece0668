"""Workflows for GitHub Actions: valid, and examples whose shell steps run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
OWN = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EXAMPLES = sorted((ROOT / "examples" / "ci").glob("*.yml"))


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found["jobs"]


def commands(path: Path) -> list[str]:
    return [step["run"] for job in jobs(path).values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", OWN + EXAMPLES, ids=lambda path: path.stem)
def test_a_workflow_is_valid(path: Path) -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed: pip install -e '.[dev]'")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# Every example, with the smallest job that says something.
SMALL = {
    "regression-gate": {"BASE": str(ROOT), "BENCH": "--model random:tiny --quick --workload forward --layout packed"},
    "parity-gate": {"JOB": "quickstart --steps 4 --set model_name=random:tiny"},
    "conformance": {"CHECKS": "--mode test --only device/place"},
}


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_steps_of_an_example_run(path: Path, tmp_path: Path) -> None:
    declared = yaml.safe_load(path.read_text(encoding="utf-8"))["env"]
    assert SMALL[path.stem].keys() <= declared.keys()
    environment = os.environ | declared | SMALL[path.stem]
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    steps = [step for step in commands(path) if not step.startswith("pip install ")]
    assert steps
    for step in steps:
        done = subprocess.run(
            ["bash", "-e", "-c", step], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{step}\n{done.stdout}{done.stderr}"
