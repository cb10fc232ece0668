"""Parity of runs with label smoothing and class weights: right ones pass, and a wrong mean is caught in the head."""

from __future__ import annotations

from pathlib import Path

import pytest
from isotrain.albert_core.tasks.classification import Classification
from isotrain.benchmarks.parity.judge import judge
from support.parity_job import FLOAT32, ParityJob, write_model

WEIGHTS = [0.25 + 3.0 * (label % 5) for label in range(77)]


def test_a_weighted_and_smoothed_loss_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ParityJob(write_model(tmp_path), class_weights=WEIGHTS, label_smoothing_factor=0.1, num_epochs=1)
    right = job.record("right", **FLOAT32)
    found = judge(job.reference, right, job.error_budgets(right))
    assert found.verdict == "pass", found.reasons
    monkeypatch.setattr(Classification, "weigher", lambda _: None)
    wrong = job.record("wrong", **FLOAT32)
    assert judge(job.reference, wrong, job.error_budgets(right)).verdict == "diverged"
