"""Every published recipe on the XLA backend: the CPU backend's losses and answers, one program a shape in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isotrain.albert_core.loop import start
from isotrain.albert_core.loop.job import TextJob
from isotrain.albert_core.tokens.order import bucket_length, epoch_order
from support.recipe_checks import check_answers, check_losses, run_recipe
from support.small_recipes import OTHERWISE, RECIPES, STEPS


def shapes_in_use(job: TextJob) -> int:
    """The (rows, length) of training steps and of evaluations that the texts' lengths lead to, counted here anew."""
    config, limit = job.config, job.config.max_length

    def lengths(ordered: np.ndarray, rows: int) -> set[int]:
        starts = range(0, len(ordered), rows)
        return {bucket_length(int(ordered[start : start + rows].max()), limit) for start in starts}

    tokens, window = np.asarray(job.train_tokens.lengths), config.batch_size * config.gradient_accumulation_steps
    per_epoch = -(-len(tokens) // window)
    steps: set[int] = set()
    for epoch in range(-(-STEPS // per_epoch)):
        order = epoch_order(len(tokens), config.seed, epoch)[: window * (STEPS - epoch * per_epoch)]
        steps |= lengths(tokens[order], window)
    tokens = np.asarray(job.test_tokens.lengths)
    by_length = config.task.startswith("question_answering")
    return len(steps) + len(lengths(np.sort(tokens) if by_length else tokens, config.eval_batch_size))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_gives_the_cpu_backends_losses_and_answers(
    backend: Any, tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[TextJob] = []
    real = start.build_training

    def keep(job: TextJob, *args: Any) -> Any:
        jobs.append(job)
        return real(job, *args)

    monkeypatch.setattr(start, "build_training", keep)
    before = backend.compile_count()
    result = run_recipe(recipe, tmp_path, "xla")
    compiles = backend.compile_count() - before
    reference = run_recipe(recipe, tmp_path, "cpu")
    check_losses(result, reference)
    assert result.metrics == pytest.approx(reference.metrics, rel=1e-4)
    if not jobs[0].config.freeze_encoder:
        # The programs of SQuAD 2.0 are SQuAD's, which may have run before.
        assert (0 if recipe == "squad2" else 1) <= compiles <= shapes_in_use(jobs[0])
    check_answers(result, "xla", jobs[0].dataset.test)


@pytest.mark.parametrize("recipe", OTHERWISE)
def test_a_whole_recipe_trains_frozen_and_a_frozen_one_whole(backend: Any, tmp_path: Path, recipe: str) -> None:
    result, reference = (run_recipe(recipe, tmp_path, name, **OTHERWISE[recipe]) for name in ("xla", "cpu"))
    check_losses(result, reference)
