"""The template of a backend, installed as a user would install it and used through the command line."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import forks

TEMPLATE = Path(__file__).resolve().parents[2] / "examples" / "backend-template"
MOST_LINES = 40


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the template's package alone."""
    folder = tmp_path_factory.mktemp("template")
    # A copy, for setuptools leaves a build folder in the tree it builds from.
    shutil.copytree(TEMPLATE, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, "--target", str(folder / "site"), str(folder / "source")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    return forks.run(["-m", "isotrain.cli", *arguments], cwd=cwd, env=os.environ | {"PYTHONPATH": path}, forking=True)


@pytest.mark.slow
def test_the_template_holds_the_contract(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "conformance", "--backend", "npu", "--only", "device/")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 fail" in done.stdout


@pytest.mark.slow
def test_the_template_trains(installed: Path, tmp_path: Path) -> None:
    sets = ["model_name=random:tiny", "max_steps=5", "dataset_id=embedded:intents?train=154&test=77"]
    options = [part for item in sets for part in ("--set", item)]
    done = run(installed, tmp_path, "train", "quickstart", "--backend", "npu", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(installed, tmp_path, "train", "quickstart", "--backend", "npu", "--set", "npu.products=int8")
    assert done.returncode == 2
    assert "npu.products: 'int8' is not allowed" in done.stderr


def test_an_eager_device_is_short() -> None:
    source = (TEMPLATE / "isotrain_npu" / "__init__.py").read_text()
    (kind,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "NpuBackend")
    assert kind.end_lineno is not None
    assert kind.end_lineno - kind.lineno < MOST_LINES
