"""A process that dies, hangs or is told to stop: the others end too, say why, and leave something to go on from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from support import forks
from support.processes import children, end, start
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
    assert f"continue with: torchrun --nproc-per-node 2 -m isotrain.cli train --resume {run}" in status
    assert list(run.glob("checkpoints/step-*")), "what was saved is kept"


@pytest.fixture
def torchrun(job: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts two processes of the job under torchrun: torchrun's options, then the command's."""
    started: list[subprocess.Popen[str]] = []

    def begin(options: Iterable[str] = (), arguments: Iterable[str] = ()) -> subprocess.Popen[str]:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
        process = forks.Popen(
            [*command, "-m", "isotrain.cli", "train", str(job), *arguments],
            forking=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_torchrun_passes_a_stop_on_and_all_save_the_same_step(
    job: Path, torchrun: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    run = job.parent / "runs" / "run"
    process = torchrun()
    wait_for_a_checkpoint(run, [process])
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "stopped", output
    assert f"step-{summary['step']:08d}" in {path.name for path in run.glob("checkpoints/*")}
    assert output.count("continue with: torchrun --nproc-per-node 2 -m isotrain.cli train --resume") == 1, output


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_torchrun_restarts_what_died_and_it_goes_on_from_the_newest_checkpoint(
    job: Path, torchrun: Callable[..., subprocess.Popen[str]], killed: int
) -> None:
    """The process that comes late is the other one each time: the first to come must not take the dead for living."""
    run = job.parent / "runs" / "run"
    sets = ["--set", "resume_from_checkpoint=auto", "--set", "num_epochs=60", "--set", "process_timeout=60"]
    process = torchrun(["--max-restarts", "1"], sets)
    wait_for_a_checkpoint(run, [process])
    first = children(process.pid)
    os.kill(first[killed], signal.SIGKILL)
    deadline = time.monotonic() + 120
    while len(second := [pid for pid in children(process.pid) if pid not in first]) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "not started again in two minutes"
        time.sleep(0.05)
    late = second[1 - killed]
    os.kill(late, signal.SIGSTOP)
    time.sleep(4)
    os.kill(late, signal.SIGCONT)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert json.loads((run / "summary.json").read_text())["status"] == "completed", output
    assert "resumed from" in (run / "train.log").read_text(), "it began anew"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if "eval/" in line]
    assert steps == [4 * epoch for epoch in range(1, 61)]
