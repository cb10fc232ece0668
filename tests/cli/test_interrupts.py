"""Signals at any moment: what is left can be resumed, bit for bit."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from isotrain.albert_core.processes.signals import STOPPING
from support import forks
from support.small_job import write_dataset

CONFIG = """
dataset_id: ./data
model_name: random:tiny
dtype: float32
max_length: 32
mlp_hidden_size: 16
batch_size: 2
gradient_accumulation_steps: 3
num_epochs: 40
learning_rate: 1.0e-3
lr_scheduler_type: cosine
save_strategy: step
steps_freq: 7
val_steps_freq: 31
keep_last_n: 2
threads: 1
"""
PROGRAM = "from isotrain.cli.main import main; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interrupts")
    write_dataset(path / "data", train=31, test=12)
    (path / "job.yaml").write_text(CONFIG)
    return path


def start(folder: Path, *arguments: str, real: bool = False) -> subprocess.Popen[str]:
    """A fork, or a `real` interpreter."""
    words, to = ["-c", PROGRAM, "train", *arguments], subprocess.PIPE
    if real:
        return subprocess.Popen([sys.executable, *words], cwd=folder, stdout=to, stderr=subprocess.STDOUT, text=True)
    return forks.Popen(words, cwd=folder, stdout=to, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def straight(folder: Path) -> Path:
    process = start(folder, "job.yaml", "--set", "run_name=straight")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return folder / "runs" / "straight"


def wait_for_first_checkpoint(run: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/step-*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        time.sleep(0.01)


def same_end(run: Path, straight: Path) -> None:
    assert (run / "model/model.safetensors").read_bytes() == (straight / "model/model.safetensors").read_bytes()

    def lines(path: Path) -> list[str]:
        import json

        kept = []
        for line in (path / "metrics.jsonl").read_text().splitlines():
            values = json.loads(line)
            kept.append(str([values.get(key) for key in ("step", "epoch", "train/loss", "eval/loss", "eval/f1_macro")]))
        return kept

    assert lines(run) == lines(straight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_cleans_up_and_says_so(tmp_path: Path, number: signal.Signals) -> None:
    program = f"""
import os
from pathlib import Path
from isotrain.albert_core.runs.files import written
from isotrain.benchmarks.reports.html import write
from isotrain.cli.main import main

def half(*_):
    with written(Path("page.html")):
        os.kill(os.getpid(), {int(number)})

write.write_report = half
main(["report", "."])
"""
    ended = forks.run(["-c", program], cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (130, "isotrain: interrupted\n")
    assert not list(tmp_path.iterdir())


_LATE = """
import atexit, os, sys
from isotrain.cli import main as cli
from isotrain.cli.commands import list as shown

def signalled():
    os.kill(os.getpid(), {number})

class Last:
    # The interpreter takes modules apart after everything else.
    def __del__(self):
        os.kill(os.getpid(), {number})

def ended(*_):
    atexit.register(lambda: (signalled(), print("reached")))
    {then}

shown._show = ended
sys.argv = ["isotrain", "list", "layouts"]
sys.last = Last()
cli.main()
"""


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize(
    ("then", "code", "said"),
    [
        ("sys.exit(0)", 0, ""),
        ('raise cli.RunError("no room")', 1, "isotrain: error: no room\n"),
        ("signalled()", 130, "isotrain: interrupted\n"),
    ],
)
def test_a_signal_in_the_last_moments_changes_nothing(
    tmp_path: Path, number: signal.Signals, then: str, code: int, said: str
) -> None:
    program = _LATE.format(number=int(number), then=then)
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", said)
    alone = program.replace("signalled(), ", "")
    ended = subprocess.run([sys.executable, "-c", alone], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "reached\n", said)


def test_a_signal_while_the_last_lines_are_printed_is_too_late(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", train=30, test=12)
    (tmp_path / "job.yaml").write_text(CONFIG)
    program = """
import os, signal, sys
from isotrain.cli.commands import train
from isotrain.cli.main import main

shown = train._show
train._show = lambda result: [os.kill(os.getpid(), number) for number in (15, 2, 15)] and shown(result)
sys.argv = ["isotrain", "train", "job.yaml", "--set", "num_epochs=1", "--set", "run_name=late"]
main()
"""
    ended = forks.run(["-c", program], cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "isotrain predict runs/late" in ended.stdout.replace(f"{sys.executable} -m isotrain.cli", "isotrain")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU])
def test_a_stop_signal_saves_and_says_how_to_go_on(folder: Path, straight: Path, number: signal.Signals) -> None:
    name, real = f"stopped-{number.name.lower()}", number == signal.SIGTERM
    process = start(folder, "job.yaml", "--set", f"run_name={name}", real=real)
    wait_for_first_checkpoint(folder / "runs" / name, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 130, output
    assert f"train --resume runs/{name}" in output
    process = start(folder, "--resume", f"runs/{name}", real=real)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    same_end(folder / "runs" / name, straight)


@pytest.mark.slow
def test_kill_9_again_and_again_ends_in_the_same_bits(folder: Path, straight: Path) -> None:
    generator = random.Random(5)
    run = folder / "runs" / "killed"
    process = start(folder, "job.yaml", "--set", "run_name=killed")
    wait_for_first_checkpoint(run, process)
    for _ in range(3):
        # Anywhere: between steps, inside an accumulation window, half-way through a save.
        time.sleep(generator.uniform(0.0, 0.25))
        process.kill()
        process.communicate()
        process = start(folder, "--resume", "runs/killed")
        size = len(list(run.glob("checkpoints/step-*")))
        deadline = time.monotonic() + 60
        known = {path.name for path in run.glob("checkpoints/step-*")}
        while process.poll() is None and time.monotonic() < deadline:
            if {path.name for path in run.glob("checkpoints/step-*")} - known:
                break
            time.sleep(0.01)
        assert size
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    same_end(run, straight)


@pytest.mark.slow
def test_a_signal_before_the_first_step_leaves_a_run_to_go_on_with(folder: Path, straight: Path) -> None:
    process = start(folder, "job.yaml", "--set", "run_name=early", "--set", "model_name=random:albert-base-v2")
    run = folder / "runs" / "early"
    log = run / "train.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "feature cache on" in log.read_text()):
        assert time.monotonic() < deadline, "the features were never begun"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 130, output
    assert "isotrain: interrupted; continue with: " in output
    assert "train --resume runs/early" in output
    assert (run / "config.yaml").is_file()
    process = start(folder, "--resume", "runs/early", "--set", "model_name=random:tiny")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    same_end(run, straight)


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_saves_and_leaves_the_last_frame(folder: Path) -> None:
    control, terminal = pty.openpty()
    process = forks.Popen(
        ["-c", PROGRAM, "train", "job.yaml", "--set", "run_name=watched"],
        cwd=folder,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        stdout=subprocess.PIPE,
        stderr=terminal,
    )
    os.close(terminal)
    shown: list[bytes] = []

    def read() -> None:
        # A terminal that nobody is left to write to ends in an error.
        with contextlib.suppress(OSError):
            while part := os.read(control, 65536):
                shown.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    wait_for_first_checkpoint(folder / "runs" / "watched", process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=240)
    reader.join(timeout=60)
    os.close(control)
    screen = b"".join(shown).decode()
    assert process.returncode == 130, screen
    assert "train --resume runs/watched" in output
    assert re.search(r"loss \d\.\d{4}  smoothed", screen)
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l"), "the cursor is given back"
