"""A small recipe on another backend, held to the CPU backend's losses and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.data.squad_file import QuestionSplit
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.train import TrainResult, train
from support.small_job import losses
from support.small_recipes import STEPS, recipe_settings


def run_recipe(recipe: str, folder: Path, backend: str, **keys: Any) -> TrainResult:
    """Trains a recipe of `RECIPES` in bucketed batches; squad's are padded."""
    layout = "padded" if recipe == "squad" else "bucketed"
    settings = recipe_settings(recipe, folder, run_name=backend, layout=layout, **keys)
    return train(load_config(recipe, settings, {"backend": backend}))


def check_losses(result: TrainResult, reference: TrainResult, limit: float = 1e-5) -> None:
    """Asserts that the losses of all steps differ by at most `limit`, relative."""
    got, want = np.array(losses(result)), np.array(losses(reference))
    assert len(got) == STEPS
    assert np.array_equal(got[:, 0], want[:, 0])
    assert np.abs(got[:, 1] / want[:, 1] - 1).max() <= limit


def check_answers(result: TrainResult, backend: str, split: Any) -> None:
    """Asserts that a run of `backend` answers some of a split's texts as its model does on the CPU backend."""
    asked = _first_of(split)
    here, there = (load_predictor(result.run, backend=name).predict(*asked) for name in (backend, "cpu"))
    for ours, theirs in zip(here, there, strict=True):
        for name, value in theirs.answer().items():
            near = isinstance(value, float) or name == "probabilities"
            assert ours.answer()[name] == (pytest.approx(value, rel=1e-4) if near else value), name


def _first_of(split: Any, count: int = 6) -> tuple[list[str], list[str] | None]:
    """Some of a split's texts, and what belongs to them: contexts, or second texts."""
    if isinstance(split, QuestionSplit):
        return split.questions[:count], split.contexts[:count]
    return split.texts[:count], None if split.pairs is None else split.pairs[:count]
