"""Every published recipe as a job of seconds: its own configuration, small data and a tiny model of its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isotrain.albert_core.config.load import as_set
from support.small_job import write_dataset
from support.small_pairs import write_pairs
from support.small_questions import write_questions
from support.small_tasks import write_scores, write_topics, write_unanswerable
from support.tiny_models import write_models

STEPS = 12


@dataclass(frozen=True)
class Recipe:
    """What a packaged configuration is given beside the sizes common to all: data, a model's type, keys."""

    write: Callable[[Path], Path]
    model: str = "albert"
    keys: dict[str, Any] = field(default_factory=dict)


def _texts(folder: Path) -> Path:
    return write_dataset(folder / "texts", train=64, test=24)


def _answers(folder: Path) -> Path:
    """Texts whose labels are whole answers, two ways of writing each."""
    written = write_dataset(folder / "answers", train=64, test=24)
    for path in written.iterdir():
        header, *rows = path.read_text().splitlines()
        answers = [f"{row}: {('See', 'see ')[number % 2]} page {number}." for number, row in enumerate(rows)]
        path.write_text("\n".join([header.replace("label", "response"), *answers]) + "\n")
    return written


# Published rates of whole models would leave tiny ones as they are in so few steps, and a wrong gradient unseen.
RECIPES = {
    "banking77": Recipe(_texts, keys={"num_labels": None, "learning_rate": 1e-2}),
    "banking77_lora": Recipe(_texts, keys={"num_labels": None, "learning_rate": 1e-2}),
    "csv_intents": Recipe(_answers, keys={"gradient_accumulation_steps": 2, "learning_rate": 1e-2}),
    "mrpc": Recipe(lambda folder: write_pairs(folder / "pairs"), "bert", {"learning_rate": 1e-3}),
    "quickstart": Recipe(_texts, keys={"learning_rate": 1e-2}),
    "squad": Recipe(
        lambda folder: write_questions(folder / "questions", train=40, sentences=6),
        keys={"doc_stride": 24, "batch_size": 4, "learning_rate": 2e-3},
    ),
    "similarity": Recipe(lambda folder: write_scores(folder / "scores"), "bert", {"learning_rate": 3e-3}),
    "squad2": Recipe(
        lambda folder: write_unanswerable(folder / "unanswerable", train=40, sentences=6),
        keys={"doc_stride": 24, "batch_size": 4, "learning_rate": 2e-3},
    ),
    "subj": Recipe(_texts, keys={"num_labels": None, "learning_rate": 1e-2}),
    "topics": Recipe(lambda folder: write_topics(folder / "topics"), keys={"learning_rate": 1e-2}),
}

# What each is not published as: a whole model frozen, a frozen one whole.
OTHERWISE: dict[str, dict[str, Any]] = {
    "banking77": {"freeze_encoder": False, "learning_rate": 2e-3},
    "csv_intents": {"freeze_encoder": True, "learning_rate": 1e-2},
    "mrpc": {"freeze_encoder": True, "learning_rate": 1e-2},
    "similarity": {"freeze_encoder": False, "learning_rate": 2e-3},
    "squad": {"freeze_encoder": True, "learning_rate": 1e-2},
    "subj": {"freeze_encoder": True, "learning_rate": 1e-2},
    "topics": {"freeze_encoder": False, "learning_rate": 2e-3},
}


def recipe_settings(name: str, folder: Path, **overrides: Any) -> list[str]:
    """The recipe `name` as ``key=value`` strings: float32, `STEPS` steps, each logged, its runs under `folder`."""
    recipe = RECIPES[name]
    values = {
        "dataset_id": str(recipe.write(folder)),
        "model_name": str(write_models(folder / "models")[recipe.model]),
        "dtype": "float32",
        "max_length": 64,
        "max_steps": STEPS,
        "steps_freq": 1,
        "eval_batch_size": 8,
        "threads": 1,
        "chart": [],
        # Its masks differ from device to device.
        "head_dropout": 0.0,
        "project_dir": str(folder / "runs"),
    }
    return [as_set(key, value) for key, value in (values | recipe.keys | overrides).items()]
