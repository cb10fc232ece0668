"""Nobody is left running when the process that started others is killed with -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from isotrain.albert_core.processes import parent
from support import forks
from support.processes import children, environment, free_port
from support.small_job import settings, write_dataset

# A worker that has a child of its own, as one that compiles has.
WORKER = """
import subprocess, sys, time
from pathlib import Path
from isotrain.benchmarks.harness.answer import answer
from isotrain.benchmarks.harness.document import Spec

class Pids(Spec):
    pids: str
    own: str

def work(spec):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    path = Path(spec.pids)
    path.with_suffix(".part").write_text(f"{spec.own} {child.pid}")
    path.with_suffix(".part").replace(path)
    time.sleep(300)

sys.exit(answer(Pids, work))
"""

PARENT = """
import os, sys
from pathlib import Path
from isotrain.benchmarks.harness.document import Spec
from isotrain.benchmarks.harness.runner import running

class Pids(Spec):
    pids: str
    own: str

folder = Path(sys.argv[1])
spec = Pids(result=str(folder / "result"), pids=str(folder / "pids"), own="")
with running([sys.executable, str(folder / "worker.py")], spec, folder / "log", None) as worker:
    (folder / "worker").write_text(str(worker.pid))
    worker.wait()
"""


def wait_for(done: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def running(pids: Iterable[int]) -> list[int]:
    """Those that still run; one that nobody has waited for runs no more."""
    states = {}
    for pid in pids:
        try:
            states[pid] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
    return [pid for pid, state in states.items() if state != "Z"]


def test_a_worker_and_its_children_end_with_their_parent(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "parent.py").write_text(PARENT)
    started = subprocess.Popen([sys.executable, str(tmp_path / "parent.py"), str(tmp_path)])
    pids: list[int] = []
    try:
        wait_for((tmp_path / "pids").exists, "the worker has not begun")
        pids = [int(pid) for name in ("worker", "pids") for pid in (tmp_path / name).read_text().split()]
        assert running(pids) == pids
        assert len(pids) == 2
        started.kill()
        started.wait()
        wait_for(lambda: not running(pids), f"{pids} still run", seconds=20)
    finally:
        for pid in running(pids):
            os.kill(pid, signal.SIGKILL)


def test_one_process_alone_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in the background goes on when its shell is gone."""
    monkeypatch.setattr(parent.threading, "Thread", lambda **_: pytest.fail("it is watched"))
    parent.stop_with_launcher()
    monkeypatch.setenv("WORLD_SIZE", "1")
    parent.stop_with_launcher()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "torchrun and a script", "another"])
def test_a_run_is_saved_and_ends_when_its_launcher_is_killed(tmp_path: Path, launcher: str) -> None:
    data, run = write_dataset(tmp_path / "data", train=30, test=12), tmp_path / "runs" / "run"
    keys = {"threads": 1, "num_epochs": 100_000, "steps_freq": 5, "save_strategy": "step", "run_name": "run"}
    sets = settings(data, tmp_path, process_timeout=20, **keys)
    (tmp_path / "job.yaml").write_text("\n".join(line.replace("=", ": ", 1) for line in sets))
    port = free_port()
    train = ["-m", "isotrain.cli", "train", str(tmp_path / "job.yaml")]
    (tmp_path / "train.sh").write_text(f'"$INTERPRETER" {" ".join(train)}\nexit $?\n')
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = {
        "torchrun": [*torchrun, *train],
        "torchrun and a script": [*torchrun, "--no-python", "sh", str(tmp_path / "train.sh")],
        "another": [str(tmp_path / "launch.py")],
    }[launcher]
    (tmp_path / "launch.py").write_text(
        "import json, os, subprocess, sys\n"
        f"environments = json.loads({json.dumps(json.dumps([environment(rank, 2, port) for rank in (0, 1)]))})\n"
        f"processes = [subprocess.Popen([sys.executable, *{train!r}], env=one) for one in environments]\n"
        "[process.wait() for process in processes]\n"
    )
    with (tmp_path / "output").open("w") as output:
        started = forks.Popen(
            command, forking=True, stdout=output, stderr=output, env={**os.environ, "INTERPRETER": sys.executable}
        )
    ranks: list[int] = []
    try:
        wait_for(lambda: list(run.glob("checkpoints/step-*")), (tmp_path / "output").read_text())
        ranks = children(started.pid)
        ranks += [grandchild for rank in ranks for grandchild in children(rank)]
        assert len(ranks) >= 2
        started.kill()
        started.wait()
        wait_for(lambda: not running(ranks), f"{ranks} still run", seconds=60)
    finally:
        for pid in (*running(ranks), *running([started.pid])):
            os.kill(pid, signal.SIGKILL)
    said = (tmp_path / "output").read_text()
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped", said
    assert "continue with: torchrun --nproc-per-node 2 -m isotrain.cli train --resume" in said
