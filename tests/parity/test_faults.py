"""Whether parity can fail: planted faults must be caught from their stated size on, and right runs must pass."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from isotrain import UserError
from isotrain.benchmarks.parity.judge import Judgement, judge
from isotrain.kernels.cpu.library import why_not
from support.faults import FAULTS, REFUSED, Fault, planted
from support.parity_job import ParityJob, write_model
from support.tables import show

SEEDS = 8
PAIRS = 200


def judged(job: ParityJob, settings: dict[str, Any]) -> Judgement:
    candidate = job.record("candidate", **settings)
    return judge(job.reference, candidate, job.yardsticks(candidate))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planted_faults_are_caught(job: ParityJob, fault: Fault) -> None:
    rows = []
    for size in fault.sizes:
        try:
            with planted(fault, size):
                candidate = job.record("faulty", **fault.settings)
            found = judge(job.reference, candidate, job.yardsticks(candidate))
        except UserError:
            assert fault.where == REFUSED
            found = Judgement(REFUSED, [])
        rows.append((size, found))
        if size in fault.required:
            assert found.verdict != "pass", f"{fault.name} of {size} {fault.unit} was not caught"
    show("parity: planted faults", ("fault", "size", "must", "verdict", "error / allowed", "first step", "where"), [
        (fault.name, f"{size:g} {fault.unit}".strip(), "caught" if size in fault.required else "-", found.verdict,
         f"{found.worst:.2g}", found.first_step, f"{found.repetition or '-'} {found.cause or ''}".strip())
        for size, found in rows
    ])  # fmt: skip
    largest = rows[0][1]
    if fault.where == REFUSED:
        assert largest.verdict == REFUSED
    elif fault.where is not None:
        assert (largest.repetition or "") == fault.where
        assert largest.cause == ("local" if fault.where else None)


def variants() -> list[dict[str, Any]]:
    """Right runs: kernels, layouts, thread counts, fused steps and caches, in both dtypes."""
    found = []
    for layout, threads, fused in itertools.product(("packed", "padded", "bucketed"), (1, 2), (True, False)):
        found.append({"dtype": "float32", "layout": layout, "threads": threads, "fused_head": fused})
    for layout, threads in itertools.product(("padded", "bucketed"), (1, 2)):
        found.append({"dtype": "float32", "kernel": "transformers", "layout": layout, "threads": threads})
    for layout, threads in itertools.product(("packed", "padded", "bucketed"), (1, 2)):
        found.append({"dtype": "bfloat16", "kernel": "portable", "layout": layout, "threads": threads})
    for layout in ("padded", "bucketed"):
        found.append({"dtype": "bfloat16", "kernel": "transformers", "layout": layout})
    kernel = "portable" if why_not() else "native"
    found.append({"dtype": "bfloat16", "kernel": kernel, "feature_cache": True})
    return found


@pytest.mark.slow
def test_right_runs_raise_no_alarm(tmp_path_factory: pytest.TempPathFactory) -> None:
    worst: list[tuple[float, str]] = []
    for seed in range(SEEDS):
        job = ParityJob(write_model(tmp_path_factory.mktemp("model"), seed), seed=seed)
        for settings in variants():
            found = judged(job, settings)
            worst.append((found.worst, f"seed {seed}, {settings}: {'; '.join(found.reasons)}"))
    alarms = [text for ratio, text in worst if not ratio <= 1.0]
    ratios = sorted(ratio for ratio, _ in worst)
    show("parity: fault-free pairs", ("pairs", "alarms", "median error / allowed", "largest"),
         [(len(worst), len(alarms), f"{ratios[len(ratios) // 2]:.2f}", f"{ratios[-1]:.2f}")])  # fmt: skip
    assert len(worst) >= PAIRS
    assert len(alarms) <= len(worst) // 100, "\n".join(alarms)
