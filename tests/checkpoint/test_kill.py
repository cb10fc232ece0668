"""``kill -9`` at random moments of saving and pruning: the last checkpoint is always whole, and never older than the
last save that returned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("last", "best", "save_optim"), [("1", "0", "true"), ("2", "2", "false"), ("0", "0", "false")])
def test_killed_at_random_moments(last: str, best: str, save_optim: str, tmp_path: Path) -> None:
    harness = Path(__file__).with_name("kill_harness.py")
    done = subprocess.run(
        [sys.executable, harness, tmp_path / "checkpoints", "25", "1", last, best, save_optim],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["steps"] >= 10
    # The kills are worth nothing unless some hit the middle of a save.
    assert seen["kills_with_leftovers"] >= 3
    assert seen["rest"] == []
