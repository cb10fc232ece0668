"""The template's lazy device, registered as an installed package would be, through the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.packages import described

TEMPLATE = Path(__file__).resolve().parents[2] / "examples" / "backend-template"
MOST_LINES = 150


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pip writes of the package, for this environment may have nothing to build it with."""
    ((group, entries),) = tomllib.loads((TEMPLATE / "pyproject.toml").read_text())["project"]["entry-points"].items()
    return described(tmp_path_factory.mktemp("template"), "isotrain-npu", group, entries, "0.1.0")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "conformance --only device/",
        "train quickstart --set model_name=random:tiny --set max_steps=5 "
        "--set dataset_id=embedded:intents?train=154&test=77",
    ],
    ids=["conformance", "train"],
)
def test_a_lazy_device_holds_the_contract_and_trains(registered: Path, tmp_path: Path, command: str) -> None:
    path = os.pathsep.join([str(registered), str(TEMPLATE), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "isotrain.cli", *command.split(), "--backend", "npu-lazy"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "npu-lazy" in done.stdout + done.stderr


def test_a_lazy_device_is_short() -> None:
    assert len((TEMPLATE / "isotrain_npu" / "lazy.py").read_text().splitlines()) < MOST_LINES
