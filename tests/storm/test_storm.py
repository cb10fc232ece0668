"""A short storm over the product, and the storm's own judge: it must see what is planted."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import forks

from storm import inputs
from storm.judge import Outcome, Verdict, compared, left_over, result, spoke
from storm.process import Ended
from storm.table import as_markdown
from storm.ways import WAYS

# Kind, variant, tries: each kind on a variant of its own.
SHORT = (("kills", "no-optimizer", 3), ("signals", "cached", 4), ("events", "keep-one", 12), ("disks", "remote", 4))


def storm(folder: Path, *arguments: object) -> list[dict[str, object]]:
    """Every try of ``python -m storm``, as it wrote them."""
    tests = Path(__file__).resolve().parents[1]
    words = ["-m", "storm", *map(str, arguments), "--json", str(folder / "tries.json")]
    done = forks.run(words, cwd=tests, env=os.environ | {"TMPDIR": str(folder)})
    assert done.returncode in (0, 1), done.stderr
    tries = json.loads((folder / "tries.json").read_text())
    assert done.returncode == int(bool(bad(tries)))
    return tries


def bad(tries: list[dict[str, object]]) -> list[dict[str, object]]:
    return [one for one in tries if Verdict(str(one["verdict"])).is_bad]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "variant", "tries"), SHORT, ids=[kind for kind, *_ in SHORT])
def test_a_short_storm_ends_well(kind: str, variant: str, tries: int, tmp_path: Path) -> None:
    done = storm(tmp_path, "--only", kind, "--variant", variant, "--tries", tries)
    assert len(done) == tries
    assert bad(done) == []


@pytest.mark.slow
def test_changed_files_are_never_used(tmp_path: Path) -> None:
    done = storm(tmp_path, "--only", "mutations", "--variant", "keep-one", "--tries", 40, "--seed", 4)
    assert len(done) == 40
    assert bad(done) == []


@pytest.mark.slow
def test_strange_inputs_end_in_a_line(tmp_path: Path) -> None:
    done = storm(tmp_path, "--only", "inputs", "--tries", 10)
    assert len(done) == 120
    assert bad(done) == []


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a completed run has for the judge."""
    folder = tmp_path / "run"
    for name in ("model", "tokenizer", "checkpoints/step-00000004"):
        (folder / name).mkdir(parents=True)
    for name in ("model/model", "checkpoints/step-00000004/model"):
        (folder / f"{name}.safetensors").write_bytes(b"weights")
    (folder / "labels.json").write_text('["a", "b"]')
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    lines = [{"step": step, "train/loss": 1.0 / step, "samples_per_second": 7.0 + step} for step in (2, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps({"status": "completed", "seconds": 3.0, "dataset": "data"}))
    return folder


@pytest.mark.parametrize(
    ("file", "old", "new", "seen"),
    [
        ("model/model.safetensors", "weights", "weightz", "model/model.safetensors"),
        ("checkpoints/step-00000004/model.safetensors", "weights", "weightz", "checkpoints"),
        ("labels.json", '"a", "b"', '"b", "a"', "labels.json"),
        ("tokenizer/tokenizer.json", "{}", "{ }", "tokenizer"),
        ("metrics.jsonl", "0.25", "0.26", "metrics"),
        ("summary.json", "completed", "stopped", "summary"),
    ],
)
def test_the_judge_sees_every_difference(run: Path, file: str, old: str, new: str, seen: str) -> None:
    expected = result(run)
    assert compared(run, expected).verdict is Verdict.WELL
    text = (run / file).read_text()
    assert old in text
    (run / file).write_text(text.replace(old, new))
    outcome = compared(run, expected)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.seen.startswith(seen)


def test_the_judge_takes_a_step_twice_for_wrong_and_times_for_nothing(run: Path) -> None:
    expected = result(run)
    figures = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(figures.replace('"samples_per_second": 9.0', '"samples_per_second": 1.0'))
    assert compared(run, expected).verdict is Verdict.WELL
    (run / "metrics.jsonl").write_text(figures + figures.splitlines()[-1] + "\n")
    assert compared(run, expected).verdict is Verdict.WRONG


def test_the_judge_sees_what_is_left_over(tmp_path: Path) -> None:
    assert left_over(tmp_path).verdict is Verdict.WELL
    (tmp_path / ".tmp-host-1-00000000-labels.json").touch()
    assert left_over(tmp_path).verdict is Verdict.LEFT_OVER


@pytest.mark.parametrize(
    ("code", "err", "verdict"),
    [
        (0, "INFO     run runs/run\n", Verdict.WELL),
        (2, "isotrain: error: a.csv, line 2: no label; give one\n", Verdict.WELL),
        (2, "", Verdict.MESSAGE),
        (2, "isotrain: error: one\nisotrain: error: two\n", Verdict.MESSAGE),
        (2, "isotrain: error: " + "x" * 600 + "\n", Verdict.MESSAGE),
        (2, "isotrain: error: \x1b[31mred\n", Verdict.MESSAGE),
        (2, "a.py:1: FutureWarning: words of a library\nisotrain: error: one\n", Verdict.MESSAGE),
        (1, "isotrain: error: the disk is full\n", Verdict.EXIT_CODE),
        (-11, "", Verdict.EXIT_CODE),
        (None, "", Verdict.DEAD_END),
        (1, "Traceback (most recent call last):\n  ...\nKeyError: 'a'\n", Verdict.TRACEBACK),
        (1, "isotrain: error: KeyError: 'a' (add --debug for the traceback)\n", Verdict.TRACEBACK),
    ],
)
def test_the_judge_of_exit_codes_and_messages(code: int | None, err: str, verdict: Verdict) -> None:
    assert spoke(Ended(code, "", err, 0.1), (0, 2)).verdict is verdict


def test_a_process_is_killed_before_the_event_that_was_meant(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from storm.hook import *; "
        "here = pathlib.Path(sys.argv[2]); on_file_events(here, kill_before(3))(); "
        "[(here / name).write_text(name) for name in ('one', 'two', 'three')]"
    )
    tests = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", program, tests, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize("name", WAYS)
def test_every_way_changes_the_file(name: str, tmp_path: Path) -> None:
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    path.write_text('{"a": [1, 2], "b": "text"}')
    other.write_text('{"a": [3]}')
    before = path.read_bytes()
    assert WAYS[name](path, other, random.Random(1))
    assert path.is_dir() or not path.exists() or path.read_bytes() != before


def test_changes_of_an_input_are_many_and_repeat() -> None:
    changed = [inputs.change("key: value\nother: 1\n", random.Random(seed)) for seed in range(200)]
    assert len(set(changed)) > 100
    assert inputs.change("key: value\nother: 1\n", random.Random(7)) == changed[7]


def test_the_table_counts(tmp_path: Path) -> None:
    outcomes = [Outcome(Verdict.WELL), Outcome(Verdict.WELL), Outcome(Verdict.LOST)]
    table = as_markdown([("kills", "whole", outcome.verdict) for outcome in outcomes])
    assert table.splitlines()[2].startswith("| kills | whole | 3 | 2 | 0 | 1 |")
