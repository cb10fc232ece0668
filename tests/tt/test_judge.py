"""The judge of `make judge-tt`: what it said last, and that a wrong, hanging or crashing one is told."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from isotrain.kernels.tt import native
from isotrain.kernels.tt.arithmetic import ttnn_block_tiles
from judge_tt.cases import Case, Plan
from judge_tt.run import Judge
from judge_tt.table import Table, load, markdown

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parents[2]

# In the place of ttnn: adds in float32, and does what JUDGE says when the second sum of a process is asked for.
STAND_IN = """
import os, subprocess, sys, time

bfloat16 = float32 = TILE_LAYOUT = None
asked = []

def open_device(device_id):
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    with open(os.environ["CHILDREN"], "a") as file:
        file.write(f"{child.pid}\\n")
    if os.environ["JUDGE"] == "broken":
        sys.exit("no simulator")

def close_device(device):
    pass

class Tensor:
    def __init__(self, values, dtype, device, layout):
        self.values = values

    def cpu(self):
        return self

    def to_numpy(self):
        return self.values

def to_dtype(tensor, dtype):
    return tensor

def add(a, b):
    asked.append(1)
    if len(asked) == 2 and os.environ["JUDGE"] == "hangs":
        time.sleep(60)
    if len(asked) == 2 and os.environ["JUDGE"] == "crashes":
        os.abort()
    return a if os.environ["JUDGE"] == "wrong" else Tensor(a.values + b.values, None, None, None)

subtract = multiply = add
"""


def _runs(pid: str) -> bool:
    """Whether a process goes on. One that ended and is not waited for has no command line."""
    command = Path("/proc", pid, "cmdline")
    return command.exists() and bool(command.read_bytes())


def ask(tmp_path: Path, behaviour: str, cases: list[Case]) -> Table:
    (tmp_path / "ttnn.py").write_text(STAND_IN, encoding="utf-8")
    children = tmp_path / "children"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "JUDGE": behaviour, "CHILDREN": str(children)}
    seconds = 5.0 if behaviour == "hangs" else 60.0
    table = Table("a stand-in", tuple(Judge(sys.executable, environment, seconds).rows(cases)))
    for pid in children.read_text().split():
        until = time.monotonic() + 10
        while _runs(pid):
            assert time.monotonic() < until, "a simulator goes on"
            time.sleep(0.02)
    return table


def additions(count: int) -> list[Case]:
    """Sums of integers, which every arithmetic has right."""
    case = next(case for case in Plan("blackhole", 0, short=True).cases if case.operation == "add")
    return [replace(case, values="integers", seed=seed) for seed in range(count)]


@pytest.mark.parametrize(
    ("behaviour", "judged", "reason"),
    [
        ("works", 3, ""),
        ("hangs", 2, "no result in 5 s"),
        ("crashes", 2, "the judge ended with exit code -6"),
        ("broken", 0, "the judge ended with exit code 1: no simulator"),
    ],
)
def test_a_judge_that_fails_costs_its_case_and_says_why(
    behaviour: str, judged: int, reason: str, tmp_path: Path
) -> None:
    table = ask(tmp_path, behaviour, additions(3))
    (row,) = table.rows
    assert (row.values, row.equal) == (judged * 4096, judged * 4096)
    assert row.reason == reason
    assert table.mismatches == 0
    assert ("without a result" in table.verdict) == bool(reason)


def test_a_wrong_judge_is_contradicted(tmp_path: Path) -> None:
    table = ask(tmp_path, "wrong", additions(1))
    assert table.values == 4096
    assert 3000 < table.mismatches <= 4096


@pytest.mark.parametrize("arch", native.ARCHITECTURES)
def test_every_case_has_a_result_of_ours(arch: str) -> None:
    for case in Plan(arch, 0, short=True).cases:
        rows, columns = case.shapes[0][0], case.shapes[-1 if case.operation.startswith("linear") else 0][1]
        assert case.ours().shape == (rows, 1 if case.operation in ("sum", "mean") else columns), case


@pytest.mark.parametrize(
    ("rows", "k", "columns", "wormhole", "blackhole"),
    [
        (64, 768, 64, 3, 1),
        (64, 1248, 64, 1, 3),
        (96, 416, 64, 1, 1),
        (32, 832, 64, 2, 2),
        (64, 1280, 32, 2, 2),
        (320, 96, 32, 1, 1),
    ],
)
def test_blocks_of_k_are_those_of_the_judges_kernels(
    rows: int, k: int, columns: int, wormhole: int, blackhole: int
) -> None:
    assert ttnn_block_tiles(rows, k, columns, "wormhole") == wormhole
    assert ttnn_block_tiles(rows, k, columns, "blackhole") == blackhole


def test_the_last_verdict_is_the_documents_table() -> None:
    table = load()
    assert table.values >= 200_000
    assert table.mismatches == 0
    assert markdown(table.rows) in (ROOT / "docs" / "tt-emulation.md").read_text(encoding="utf-8")
