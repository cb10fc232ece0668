"""How processes find each other: what keeps a group from forming is said in one line, and restarts form it anew."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from isotrain import UserError
from isotrain.albert_core.processes.ranks import ALONE, launched
from support import forks
from support.processes import end, environment, free_port
from support.small_job import settings, write_dataset

LIMIT = 4


@pytest.fixture
def job(tmp_path: Path) -> Path:
    data = write_dataset(tmp_path / "data", train=30, test=12)
    lines = (item.replace("=", ": ", 1) for item in settings(data, tmp_path, threads=1, process_timeout=LIMIT))
    (tmp_path / "job.yaml").write_text("\n".join(lines))
    return tmp_path / "job.yaml"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Something that listens, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def train(job: Path, rank: int, size: int, port: int, **changed: str) -> subprocess.Popen[str]:
    return forks.Popen(
        ["-m", "isotrain.cli", "train", str(job)],
        env={**environment(rank, size, port), **changed},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_a_group_that_does_not_form_says_why_in_one_line(job: Path, listener: socket.socket) -> None:
    taken = int(listener.getsockname()[1])
    meeting, lonely = free_port(), free_port()
    # Two that wait for a third must come at about the same time, so they start alone.
    pair = {
        train(job, 0, 3, meeting): f"process 2 did not come within {LIMIT} s",
        train(job, 1, 3, meeting): f"process 2 did not come within {LIMIT} s",
    }
    ends = list(zip(end(list(pair)), pair.values(), strict=True))
    others = {
        train(job, 1, 2, free_port()): f"was not reached within {LIMIT} s (process_timeout): Connection refused",
        train(job, 1, 2, 1, MASTER_ADDR="nowhere.invalid"): "nowhere.invalid:1 (MASTER_ADDR, MASTER_PORT): the name",
        train(job, 0, 2, taken): "can't be listened at (Address already in use); another run may use this port",
        train(job, 1, 2, taken): "answers, but not as torch's store does",
        train(job, 0, 2, lonely): f"process 1 did not come within {LIMIT} s",
    }
    for (code, output), words in [*ends, *zip(end(list(others)), others.values(), strict=True)]:
        assert code == 1, output
        (line,) = output.splitlines()
        assert line.startswith("isotrain: error: process "), line
        assert words in line
        assert "--resume" not in line
    assert not (job.parent / "runs").exists()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', allowed are whole numbers from 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "9" * 30}, "WORLD_SIZE is '9"),
        ({"RANK": "2"}, r"RANK is '2', allowed are whole numbers from 0 to 1 \(below WORLD_SIZE\)"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"LOCAL_RANK": "5"}, "LOCAL_RANK is '5'"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000', allowed are whole numbers from 1 to 65535;"),
        ({"MASTER_PORT": "29500x"}, "MASTER_PORT is '29500x'"),
        ({"MASTER_PORT": ""}, "WORLD_SIZE is 2 and MASTER_PORT not set"),
        ({"MASTER_ADDR": ""}, "WORLD_SIZE is 2 and MASTER_ADDR not set"),
    ],
)
def test_what_a_launcher_sets_wrongly_is_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in {**environment(1, 2, 1234), **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        launched()


def test_a_rank_without_a_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert launched() == ALONE
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="RANK is '1' and WORLD_SIZE is not set; start by torchrun"):
        launched()


def test_wrong_variables_exit_with_2(job: Path) -> None:
    ((code, output),) = end([train(job, 3, 2, 1234)])
    assert code == 2, output
    assert output.startswith("isotrain: error: RANK is '3', allowed are")


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_restarted_processes_meet_again(tmp_path: Path, nodes: int) -> None:
    """Of two torchruns only one counts the restart."""
    port, job = free_port(), Path(__file__).parent.parent / "support" / "meeting_job.py"
    meeting = ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
    torchrun = ["-m", "torch.distributed.run", *meeting, "--nproc-per-node", str(2 // nodes), "--max-restarts", "1"]
    started = [
        forks.Popen(
            [*torchrun, str(job), str(tmp_path)], forking=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for _ in range(nodes)
    ]
    for code, output in end(started):
        assert code == 0, output
    assert [(tmp_path / f"total-{rank}").read_text() for rank in (0, 1)] == ["2", "2"]


def test_a_group_that_has_met_takes_nobody_else(tmp_path: Path) -> None:
    """A second run at the same port: its first process can't listen there, and its second comes too late."""
    (tmp_path / "meet.py").write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from isotrain import RunError\n"
        "from isotrain.albert_core.processes.meeting import meet\n"
        "try:\n"
        "    store = meet(int(os.environ['RANK']), 2, 60)\n"
        "except RunError as error:\n"
        "    sys.exit(str(error))\n"
        "Path(sys.argv[1]).touch()\n"
        "time.sleep(60)\n"
    )
    port, met = free_port(), tmp_path / "met"

    def begin(rank: int) -> subprocess.Popen[str]:
        return forks.Popen(
            [str(tmp_path / "meet.py"), str(met)],
            env=environment(rank, 2, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    run = [begin(0), begin(1)]
    while not met.exists():
        assert all(process.poll() is None for process in run)
        time.sleep(0.05)
    (first_code, first), (second_code, second) = end([begin(0), begin(1)], others=run)
    assert first_code == second_code == 1
    assert "can't be listened at (Address already in use)" in first
    assert "is in use by processes that have met already; another run may use this port" in second
