"""A process that dies, hangs or is told to stop: the others end too, say why, and leave something to go on from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import end, start
from support.small_job import settings, write_dataset

ENDLESS = {
    "threads": 1,
    "num_epochs": 100_000,
    "steps_freq": 5,
    "save_strategy": "step",
    "keep_last_n": 1,
    "process_timeout": 8,
    "run_name": "run",
}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    data = write_dataset(tmp_path / "data", train=30, test=12)
    lines = (setting.replace("=", ": ", 1) for setting in settings(data, tmp_path, **ENDLESS))
    (tmp_path / "job.yaml").write_text("\n".join(lines))
    return tmp_path / "job.yaml"


def wait_for_a_checkpoint(run: Path, running: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 240
    while not list(run.glob("checkpoints/step-*")):
        assert all(process.poll() is None for process in running)
        assert time.monotonic() < deadline, "no checkpoint in four minutes"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
def test_a_lost_process_ends_the_other(job: Path, number: signal.Signals) -> None:
    run = job.parent / "runs" / "run"
    first, second = start(2, "-m", "isotrain.cli", "train", str(job))
    wait_for_a_checkpoint(run, [first, second])
    second.send_signal(number)
    ((code, output),) = end([first], others=[second])
    assert code == 1, output
    said = [line for line in output.splitlines() if line.startswith("isotrain: error:")]
    assert len(said) == 1, output
    assert "another process of this run ended, or was silent for 8 s (process_timeout)" in said[0]
    assert "Traceback" not in output
    # In one line and the same words everywhere: the summary has those of the terminal.
    status = json.loads((run / "summary.json").read_text())["status"]
    assert status == said[0].replace("isotrain: error: ", "failed: ")
    assert f"go on with: torchrun --nproc-per-node 2 -m isotrain.cli train --resume {run}" in status
    assert list(run.glob("checkpoints/step-*")), "what was saved is kept"


@pytest.fixture
def torchrun(job: Path) -> Iterator[subprocess.Popen[str]]:
    """Two processes of the job under torchrun."""
    command = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "isotrain.cli",
        "train",
        str(job),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", *command], env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    yield process
    if process.poll() is None:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.slow
def test_torchrun_passes_a_stop_on_and_all_save_the_same_step(job: Path, torchrun: subprocess.Popen[str]) -> None:
    run = job.parent / "runs" / "run"
    wait_for_a_checkpoint(run, [torchrun])
    torchrun.send_signal(signal.SIGINT)
    output, _ = torchrun.communicate(timeout=120)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "stopped", output
    assert f"step-{summary['step']:08d}" in {path.name for path in run.glob("checkpoints/*")}
    assert output.count("go on with: torchrun --nproc-per-node 2 -m isotrain.cli train --resume") == 1, output
