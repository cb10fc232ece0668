"""Parity of the tasks whose answers are sets of labels, numbers, or none: right runs pass, wrong figures don't."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isotrain.albert_core.tasks.metrics import label_set_metrics, number_metrics
from isotrain.benchmarks.parity.evaluations import metric_checks, number_moves, set_moves
from isotrain.benchmarks.parity.judge import judge
from support.parity_job import BFLOAT16, FLOAT32, ParityJob, write_model
from support.parity_traces import exact, with_header
from support.small_tasks import write_scores, write_topics, write_unanswerable

JOBS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "multi_label_classification": (lambda folder: write_topics(folder, train=48, test=40), {}),
    "regression": (lambda folder: write_scores(folder, train=48, test=40), {}),
    "question_answering_v2": (
        lambda folder: write_unanswerable(folder, train=4, dev=6),
        {"freeze_encoder": False, "doc_stride": 8, "max_length": 48, "max_grad_norm": 1.0, "num_epochs": 1},
    ),
}


@pytest.mark.parametrize("task", JOBS)
def test_right_runs_pass_and_a_wrong_figure_is_seen(task: str, tmp_path: Path) -> None:
    write, keys = JOBS[task]
    small = {"num_epochs": 2, "learning_rate": 2e-3, "eval_batch_size": 40, "dataset_id": str(write(tmp_path / "data"))}
    job = ParityJob(write_model(tmp_path), task=task, **small | keys)
    for dtype in (FLOAT32, BFLOAT16) if task == "regression" else (FLOAT32,):
        trace = job.record("candidate", **dtype)
        budgets = job.error_budgets(trace)
        assert judge(job.reference, trace, budgets).verdict == "pass"
    figures = job.reference.header.metrics[-1].figures
    assert "best_f1_thresh" not in figures
    name = {"regression": "spearmanr", "multi_label_classification": "f1_micro"}.get(task, "best_f1")
    header = trace.header.document()
    header["metrics"][-1][name] += 60 if name == "best_f1" else 0.6
    boasting = with_header(trace, metrics=header["metrics"])
    assert judge(job.reference, boasting, budgets).verdict != "pass"


@pytest.mark.parametrize("allowed", [1e-6, 1e-3, 0.05])
@pytest.mark.parametrize("answer", ["above", "number"])
@pytest.mark.parametrize("seed", range(5))
def test_errors_of_the_logits_stay_within_the_bands_of_the_figures(answer: str, allowed: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, columns = 400, 4
    logits = generator.normal(size=(rows, columns))
    targets = (logits + generator.normal(size=logits.shape)).astype(np.float32)
    moved = logits + allowed * generator.normal(size=logits.shape)
    if answer == "number":
        moves = number_moves(rows)
        ours, theirs = (
            {"loss": float(np.square(given - targets).mean()), **number_metrics(given, targets)}
            for given in (logits, moved)
        )
    else:
        moves = set_moves(rows, (targets > 0).sum(axis=0).tolist())
        ours, theirs = (
            {
                "loss": float((np.logaddexp(0, given) - given * (targets > 0)).mean()),
                **label_set_metrics(given > 0, targets > 0),
            }
            for given in (logits, moved)
        )
    traces = []
    for figures in (ours, theirs):
        named = {name.removeprefix("eval/"): value for name, value in figures.items()}
        split = {"rows": rows, "sha256": "c" * 64, "moves": moves, "answer": answer}
        trace = with_header(exact(), metrics=[{"epoch": 1, "step": 1, **named}], evaluation=split)
        trace.arrays["probe_logits"] = np.stack([logits[:64], logits[:64]])
        traces.append(trace)
    checks = metric_checks(*traces, [allowed])
    assert len(checks) == 4
    assert max(check.ratio for check in checks) <= 1.0
    # A band that anything would fit into proves nothing.
    assert all(check.allowed < 30 * allowed + 12 / rows for check in checks)
