"""Several seeds: each one's runs are recorded, held to be the same run, and their final metrics tested together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from isotrain.benchmarks.outcome.parity import Parity
from isotrain.benchmarks.parity import run
from isotrain.benchmarks.parity.compare import ALL_PASS, NOT_COMPARED, exit_code
from isotrain.benchmarks.parity.run import Comparison, run_parity
from isotrain.benchmarks.parity.sides import parse_side
from isotrain.benchmarks.parity.trace import Trace, write_trace
from isotrain.benchmarks.parity.worker import RecordSpec
from support.parity_traces import STEPS, exact, noisy, with_header

SEEDS = 5
ACCURACY = {1: 0.90, 2: 0.91, 3: 0.89, 4: 0.90, 5: 0.92}


def finished(trace: Trace, label: str, seed: int, accuracy: float) -> Trace:
    metrics = [{"epoch": 1, "step": STEPS, "accuracy": accuracy, "loss": 1.0}]
    recipe = trace.header.recipe | {"seed": seed}
    return with_header(trace, label=label, metrics=metrics, recipe=recipe)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Processes are played: the reference is exact, a candidate near to it, and "cpu:float32" dies at seed 3."""
    labels: list[str] = []

    def play(spec: RecordSpec, python: str, folder: Path, label: str, *_: Any) -> str:
        labels.append(label)
        if label.startswith("xla"):
            return "backend 'xla' can't run here"
        for draw, job in enumerate(spec.jobs):
            given = [item for item in job.sets if item.startswith("seed=")]
            seed = int(given[-1].partition("=")[2]) if given else 1
            if job.label == "cpu:float32" and seed == 3:
                return "was killed by signal 9; its last words: out of memory"
            exactly = job.label == "cpu:float64"
            if exactly and seed == 4 and "no fourth seed" in str(spec.config):
                return "was killed by signal 9"
            trace = exact() if exactly else noisy(100 * seed + draw + len(labels))
            accuracy = ACCURACY[seed] + (0.0 if exactly else 0.001 * (-1) ** seed)
            if job.label == "cpu:float32+seed=2":
                seed = 9
            write_trace(finished(trace, job.label, seed, accuracy), Path(job.out))
        return ""

    monkeypatch.setattr(run, "_run", play)
    return labels


def compared(folder: Path, *candidates: str, config: str = "quickstart") -> Parity:
    sides = tuple(parse_side(text) for text in candidates)
    return run_parity(Comparison(config, parse_side("cpu:float64"), sides, folder, seeds=SEEDS), print)


def test_the_metrics_of_all_seeds_are_tested_with_their_interval(recorded: list[str], tmp_path: Path) -> None:
    result = compared(tmp_path / "out", "cpu:bfloat16")
    (test,) = result.seeds.candidates
    assert (result.seeds.n, result.seeds.metric, test.verdict) == (SEEDS, "accuracy", "equivalent")
    assert test.low < test.difference < test.high
    assert test.difference == pytest.approx(-0.0002)
    assert exit_code(result) == ALL_PASS
    assert [label for label in recorded if "seed=" in label] == [
        f"{side} seed={seed}" for seed in range(2, 1 + SEEDS) for side in ("cpu:float64", "cpu:bfloat16")
    ]


def test_a_candidate_that_dies_at_one_seed_leaves_the_others_their_test(recorded: list[str], tmp_path: Path) -> None:
    result = compared(tmp_path / "out", "cpu:float32", "cpu:bfloat16")
    dead, sound = result.seeds.candidates
    assert (dead.verdict, sound.verdict) == ("failed", "equivalent")
    assert dead.reason == "seed 3: was killed by signal 9; its last words: out of memory"
    assert exit_code(result) == NOT_COMPARED
    assert "cpu:float32 seed=4" not in recorded


@pytest.mark.parametrize(
    ("candidates", "runs"),
    [
        # It can't run, and it is another run than the reference's.
        (["xla:float32"], ["cpu:float64", "xla:float32"]),
        (["cpu:float32+seed=2"], ["cpu:float64", "cpu:float32+seed=2"]),
        (["xla:float32", "cpu:float32+seed=2"], ["cpu:float64", "xla:float32", "cpu:float32+seed=2"]),
    ],
)
def test_nothing_more_is_run_once_no_candidate_is_left(
    recorded: list[str], tmp_path: Path, candidates: list[str], runs: list[str]
) -> None:
    result = compared(tmp_path / "out", *candidates)
    assert recorded == runs
    assert exit_code(result) == NOT_COMPARED
    assert {one.verdict for one in result.seeds.candidates} <= {"failed"}


def test_no_later_seed_is_run_once_the_last_candidate_has_died(recorded: list[str], tmp_path: Path) -> None:
    result = compared(tmp_path / "out", "cpu:float32")
    assert exit_code(result) == NOT_COMPARED
    assert [label for label in recorded if "seed=" in label][-2:] == ["cpu:float64 seed=3", "cpu:float32 seed=3"]


def test_a_reference_that_dies_at_a_later_seed_leaves_what_was_found(recorded: list[str], tmp_path: Path) -> None:
    config = tmp_path / "no fourth seed.yaml"
    config.write_text("seed: 1\n")
    result = compared(tmp_path / "out", "cpu:bfloat16", config=str(config))
    (candidate,), (test,) = result.candidates, result.seeds.candidates
    assert (candidate.verdict, test.verdict) == ("pass", "failed")
    assert test.reason == "seed 4: the reference can't be recorded: was killed by signal 9"
    assert not any("seed=5" in label for label in recorded)
