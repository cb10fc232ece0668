"""Whether parity can fail: planted faults must be caught from their stated size on, and right runs must pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isotrain import UserError
from isotrain.albert_core.config.load import ResolvedConfig
from isotrain.backends.host import processor
from isotrain.benchmarks.outcome.parity import Ended
from isotrain.benchmarks.parity.judge import Judgement, judge
from isotrain.benchmarks.parity.recording.head_replay import replay_head
from isotrain.benchmarks.parity.trace import Trace
from isotrain.kernels.cpu.library import why_not
from support.faults import B16, FAULTS, NOT_FINITE, REFUSED, Fault, planted
from support.head_faults import EVALUATION_FAULTS, FEATURE_FAULTS, HEAD_FAULTS, WHOLE_HEAD_FAULTS
from support.parity_job import ParityJob, write_model
from support.tables import show
from support.whole_faults import WHOLE_FAULTS

SEEDS = 8
PAIRS = 200


def judged(job: ParityJob, settings: dict[str, Any]) -> Judgement:
    candidate = job.record("candidate", **settings)
    return judge(job.reference, candidate, job.error_budgets(candidate))


@pytest.mark.parametrize(
    "fault", [*FAULTS, *HEAD_FAULTS, *FEATURE_FAULTS, *EVALUATION_FAULTS], ids=lambda fault: fault.name
)
def test_planted_faults_are_caught(job: ParityJob, fault: Fault) -> None:
    check_caught(job, fault)


@pytest.mark.parametrize("fault", [*WHOLE_FAULTS, *WHOLE_HEAD_FAULTS], ids=lambda fault: fault.name)
def test_planted_faults_of_whole_models_are_caught(whole_job: ParityJob, fault: Fault) -> None:
    check_caught(whole_job, fault)


def test_a_run_whose_loss_stops_being_finite_is_judged_as_far_as_it_came(job: ParityJob) -> None:
    """The weights are NaN after the fifth step, and the evaluation after the seventh ends the run."""
    with planted(NOT_FINITE, 5):
        candidate = job.record("faulty", **NOT_FINITE.settings)
    assert candidate.header.ended == Ended(step=7, reason="the loss is nan by step 7")
    found = judge(job.reference, candidate, job.error_budgets(candidate))
    # The update to NaN is the fifth step's.
    assert (found.verdict, found.first_step, found.layer) == ("diverged", 5, None)


def test_bfloat16_computed_in_float32_is_held_to_what_that_costs(
    job: ParityJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its band is narrower than that of bfloat16 operands."""
    narrow = job.record("candidate", **B16, strict_dtype=True)
    monkeypatch.setattr(processor, "bfloat16_units", lambda: "")
    wide = job.record("candidate", **B16)
    assert narrow.header.error_budget.label == "ideal bfloat16"
    assert wide.header.error_budget.label == "ideal bfloat16 (computed in float32)"
    found = [judge(job.reference, one, job.error_budgets(one)) for one in (narrow, wide)]
    assert [one.verdict for one in found] == ["pass", "pass"]
    in_bfloat16, in_float32 = (one.details.layers[-1].allowed for one in found)
    assert in_float32 < 0.8 * in_bfloat16


@pytest.mark.parametrize("frozen", [True, False])
def test_a_right_run_of_a_head_with_dropout_passes(tmp_path: Path, frozen: bool) -> None:
    """Dropout is off in the run and in the head's replay: its masks would tell the sides apart."""
    keys = {"head": "pooler_linear", "head_dropout": 0.5, "num_epochs": 1, "learning_rate": 1e-3}
    job = ParityJob(write_model(tmp_path), freeze_encoder=frozen, **keys)
    assert job.reference.header.dropout_off
    assert "head_loss" in job.reference.arrays
    found = judged(job, {"dtype": "float32"})
    assert found.verdict == "pass", found.reasons


def test_a_right_run_of_a_whole_model_passes(whole_job: ParityJob) -> None:
    """Right runs of both dtypes, layouts and thread counts: none of the faults above is what whole models do anyhow."""
    rows = []
    for dtype, layout, threads in itertools.product(("float32", "bfloat16"), ("padded", "bucketed"), (1, 2)):
        found = judged(whole_job, {"dtype": dtype, "layout": layout, "threads": threads})
        rows.append((dtype, layout, threads, found.verdict, f"{found.worst:.2f}"))
        assert found.verdict == "pass", (rows[-1], found.reasons)
    show("parity: right runs of a whole model", ("dtype", "layout", "threads", "verdict", "error / allowed"), rows)


@pytest.mark.parametrize("kernel", ["portable", "native"])
def test_a_right_run_in_int8_passes(job: ParityJob, kernel: str) -> None:
    if kernel == "native" and why_not():
        pytest.skip(why_not() or "")
    found = judged(job, {"dtype": "int8", "kernel": kernel})
    assert found.verdict == "pass", found.reasons


def check_caught(job: ParityJob, fault: Fault) -> None:
    rows = []
    for size in fault.sizes:
        try:
            with planted(fault, size):
                candidate = job.record("faulty", **fault.settings)
            found = judge(job.reference, candidate, job.error_budgets(candidate))
        except UserError:
            if fault.where != REFUSED:
                raise
            found = Judgement(REFUSED, [])
        rows.append((size, found))
        if size in fault.required:
            assert found.verdict != "pass", f"{fault.name} of {size} {fault.unit} was not caught"
    show("parity: planted faults", ("fault", "size", "must", "verdict", "error / allowed", "first step", "where"), [
        (fault.name, f"{size:g} {fault.unit}".strip(), "caught" if size in fault.required else "-", found.verdict,
         f"{found.worst:.2g}", found.first_step, f"{found.layer or '-'} {found.cause or ''}".strip())
        for size, found in rows
    ])  # fmt: skip
    largest = rows[0][1]
    if fault.where == REFUSED:
        assert largest.verdict == REFUSED
    elif fault.where is not None:
        assert (largest.layer or "") == fault.where
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
    for dtype in ("float32", "bfloat16"):
        found.append({"dtype": dtype, "feature_cache": False})
    found.append({"dtype": "bfloat16", "kernel": kernel})
    found.append({"dtype": "bfloat16", "kernel": kernel, "layout": "padded"})
    return found


@pytest.fixture
def shared_replays(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """`shared_replays(checked)` forgets what was made for other references, and if `checked`, only compares.

    A replay of the head sees the reference's features, not the candidate's: it is the same for all candidates that
    make their steps in the same way.
    """
    made: dict[tuple[object, ...], dict[str, np.ndarray]] = {}
    checks = [True]

    def replay(resolved: ResolvedConfig, reference: Trace) -> dict[str, np.ndarray]:
        config = resolved.config
        way = (config.threads, config.fused_head, config.feature_cache)
        if config.backend_name != "cpu":
            return replay_head(resolved, reference)
        if way not in made or checks[0]:
            arrays = replay_head(resolved, reference)
            known = made.setdefault(way, arrays)
            assert all(np.array_equal(known[name], arrays[name], equal_nan=True) for name in known | arrays), way
        return made[way]

    def begin(checked: bool) -> None:
        made.clear()
        checks[0] = checked

    monkeypatch.setattr("isotrain.benchmarks.parity.recording.record.replay_head", replay)
    return begin


@pytest.mark.slow
def test_right_runs_raise_no_alarm(
    tmp_path_factory: pytest.TempPathFactory, shared_replays: Callable[[bool], None]
) -> None:
    worst: list[tuple[float, str]] = []
    for seed in range(SEEDS):
        job = ParityJob(write_model(tmp_path_factory.mktemp("model"), seed), seed=seed)
        shared_replays(seed == 0)
        for settings in variants():
            found = judged(job, settings)
            worst.append((found.worst, f"seed {seed}, {settings}: {'; '.join(found.reasons)}"))
    alarms = [text for ratio, text in worst if not ratio <= 1.0]
    ratios = sorted(ratio for ratio, _ in worst)
    show("parity: fault-free pairs", ("pairs", "alarms", "median error / allowed", "largest"),
         [(len(worst), len(alarms), f"{ratios[len(ratios) // 2]:.2f}", f"{ratios[-1]:.2f}")])  # fmt: skip
    assert len(worst) >= PAIRS
    assert len(alarms) <= len(worst) // 100, "\n".join(alarms)
