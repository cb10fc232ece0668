"""Label smoothing and class weights, judged by torch's cross entropy and scikit-learn, on every way of a step."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.load import ResolvedConfig, load_config
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.collapse import CollapseWatch
from isotrain.albert_core.loop.job import open_job
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.model.head import ClassificationHead
from isotrain.albert_core.tasks.label_loss import LabelLoss, balanced
from isotrain.albert_core.tokens.order import IGNORED, epoch_order
from isotrain.kernels.cpu.library import native
from sklearn.utils.class_weight import compute_class_weight
from support.small_job import WORDS, losses, write_dataset
from torch.nn import functional

Run = Callable[..., TrainResult]
Configure = Callable[..., ResolvedConfig]

WEIGHTS = [0.5, 3.0, 1.0, 2.0, 0.25, 1.5]
ASKED = {"class_weights": WEIGHTS, "label_smoothing_factor": 0.2}


@pytest.fixture(scope="session")
def skewed_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of very different frequencies."""
    folder = write_dataset(tmp_path_factory.mktemp("skewed") / "data")
    for path in folder.glob("*.csv"):
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        kept = [row for number, row in enumerate(rows) if number // 6 % (1 + list(WORDS).index(row[1])) == 0]
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *kept])
    return folder


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_loss_and_weight_are_torchs(smoothing: float, weights: list[float] | None) -> None:
    placed = None if weights is None else torch.tensor(weights)
    loss = LabelLoss(6, smoothing, placed)
    logits, labels = torch.randn(9, 6), torch.tensor([0, 1, 5, IGNORED, 2, 2, 4, IGNORED, 3])
    size = (labels != IGNORED).sum() if weights is None else loss.weight(labels)
    wanted = functional.cross_entropy(logits, labels, placed, label_smoothing=smoothing)
    torch.testing.assert_close(loss.summed(logits, labels) / size, wanted)


def test_balanced_weights_are_scikit_learns() -> None:
    labels = np.repeat([0, 1, 2, 4], [50, 7, 1, 12])
    found = balanced(labels, 6)
    present = np.unique(labels)
    np.testing.assert_allclose(found[present], compute_class_weight("balanced", classes=present, y=labels), rtol=1e-15)
    assert found[[3, 5]].tolist() == [1.0, 1.0]
    assert found[labels].mean() == pytest.approx(1.0), "what a class without a row weighs is the mean"


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("weights", [None, [0.5, 3.0, 1.0]])
def test_bounds_are_what_an_optimizer_reaches(smoothing: float, weights: list[float] | None) -> None:
    labels = torch.tensor([0] * 5 + [1] * 2 + [2])
    placed = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    loss = LabelLoss(3, smoothing, placed)

    def reached(rows: int) -> float:
        """The lowest loss of logits that each of `rows` parameters gives to its share of the labels."""
        logits = torch.zeros(rows, 3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

        def mean() -> torch.Tensor:
            optimizer.zero_grad()
            value = functional.cross_entropy(logits.expand(8, 3), labels, placed, label_smoothing=smoothing)
            value.backward()
            return value

        optimizer.step(mean)
        return mean().item()

    assert loss.chance(labels.numpy()) == pytest.approx(reached(1), rel=1e-9)
    assert loss.least(labels.numpy()) == pytest.approx(reached(8), rel=1e-6, abs=1e-6)


def by_hand(config: Any, steps: int) -> tuple[list[float], float]:
    """The job by a plain loop: torch's mean over each step's rows; (loss a step, evaluation loss)."""
    job = open_job(config)
    head = ClassificationHead(job.encoder.config.hidden_size, config.mlp_hidden_size, 6, config.seed)
    optimizer = torch.optim.AdamW(head.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    encoder, weights = job.encoder.module(), torch.tensor(config.class_weights or [1.0] * 6)

    def mean(store: Any, rows: np.ndarray) -> torch.Tensor:
        states = []
        for row in rows:
            ids = torch.from_numpy(store.ids[store.offsets[row] : store.offsets[row + 1]].astype(np.int64))
            with torch.no_grad():
                states.append(encoder(input_ids=ids[None]).last_hidden_state[0, 0])
        labels = torch.from_numpy(store.labels[rows].copy())
        return functional.cross_entropy(
            head(torch.stack(states)), labels, weights, label_smoothing=config.label_smoothing_factor
        )

    size = config.batch_size * config.gradient_accumulation_steps
    order, history = epoch_order(job.train_tokens.num_texts, config.seed, 0), []
    for number in range(steps):
        loss = mean(job.train_tokens, order[number * size : (number + 1) * size])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history, mean(job.test_tokens, np.arange(job.test_tokens.num_texts)).item()


WAYS: dict[str, dict[str, Any]] = {
    "cached": {},
    "smoothed only": {"class_weights": None},
    "weighted only": {"label_smoothing_factor": 0.0},
    "accumulated": {"batch_size": 3, "gradient_accumulation_steps": 4},
    "streamed": {"feature_cache": False, "layout": "padded"},
    "clipped": {"max_grad_norm": 1e9},
    "float64": {"head_dtype": "float64"},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_a_step_is_torchs_mean(run: Run, configure: Configure, way: str) -> None:
    keys = ASKED | WAYS[way] | {"steps_freq": 1, "max_steps": 7, "num_epochs": 1}
    result = run(**keys)
    history, evaluation = by_hand(configure(**keys).config, 7)
    np.testing.assert_allclose([loss for _, loss in losses(result)], history, rtol=2e-5)
    assert result.metrics["eval/loss"] == pytest.approx(evaluation, rel=2e-5)


def test_whole_models_agree_packed_bucketed_and_accumulated(run: Run) -> None:
    keys = ASKED | {"freeze_encoder": False, "learning_rate": 1e-3, "steps_freq": 1, "max_steps": 4, "num_epochs": 1}
    found = [
        run(**keys, **way)
        for way in (
            {"layout": "bucketed"},
            {"layout": "packed"},
            {"layout": "packed", "batch_size": 2, "gradient_accumulation_steps": 4},
            {"layout": "bucketed", "gradient_checkpointing": True},
        )
    ]
    for other in found[1:]:
        np.testing.assert_allclose(losses(other), losses(found[0]), rtol=1e-5)
        assert other.metrics == pytest.approx(found[0].metrics, rel=1e-5)
    assert losses(found[0]) != losses(run(**keys | {"class_weights": None}))


@pytest.mark.skipif(native().library is None, reason="the fused step is native")
def test_the_fused_step_is_left_out_and_why_is_said(run: Run) -> None:
    said = "trained by autograd: no fused step computes"
    for keys in ({"label_smoothing_factor": 0.1}, {"class_weights": "balanced"}):
        assert f"{said} {next(iter(keys))}" in (run(**keys).run.path / "train.log").read_text()
    assert said not in (run().run.path / "train.log").read_text()


def test_balanced_is_of_the_training_split_and_is_logged(run: Run, configure: Configure, skewed_data: Path) -> None:
    keys = {"dataset_id": str(skewed_data), "max_train_samples": 34, "steps_freq": 1, "num_epochs": 1}
    labels = open_job(configure(**keys).config).train_tokens.labels
    weights = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    assert len(weights) == 6
    assert weights.max() > 2 * weights.min()
    result = run(class_weights="balanced", **keys)
    assert losses(result) == losses(run(class_weights=weights.tolist(), **keys))
    assert f"class weights: 'branch {weights[0]:.4g}'" in (result.run.path / "train.log").read_text()


def test_chance_of_a_run_knows_of_both(configure: Configure, skewed_data: Path) -> None:
    job = open_job(configure(dataset_id=str(skewed_data), class_weights="balanced").config)
    assert job.task.chance_loss(job.train_tokens) == pytest.approx(np.log(6))
    assert job.task.least_loss(job.train_tokens) == 0.0
    smoothed = open_job(configure(label_smoothing_factor=0.5).config)
    target = np.array([0.5 + 0.5 / 6] + [0.5 / 6] * 5)
    assert smoothed.task.least_loss(smoothed.train_tokens) == pytest.approx(-(target * np.log(target)).sum())


def test_a_collapse_is_seen_although_smoothing_leaves_little_between_best_and_chance() -> None:
    loss, labels = LabelLoss(2, 0.8), np.array([0, 1])
    chance, least = loss.chance(labels), loss.least(labels)
    assert least > 0.9 * chance, "a model that has learned everything would not count as one that has learned"
    watch = CollapseWatch(chance, least)
    for step in range(3):
        watch.after_log(step, least + 0.2 * (chance - least), None)
    assert watch.learned
    assert [watch.after_log(9, chance, None) for _ in range(5)] == [False] * 4 + [True]


def test_a_resume_with_another_smoothing_has_its_bounds(run: Run) -> None:
    first = run(stop_at_step=8)
    again = run(resume=first.run, label_smoothing_factor=0.4)
    (newest,) = again.run.checkpoints.glob("step-00000024")
    watch = json.loads((newest / "manifest.json").read_text())["state"]["watch"]
    assert watch["least"] > 1.0


def test_predictions_are_made_without_either(run: Run, tmp_path: Path) -> None:
    result = run(**ASKED)
    assert load_predictor(result.run).predict(["lost card"])[0].label in WORDS


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["class_weights=1,2,3"], r"class_weights has 3 numbers, and .* has 6 labels; .*'branch', 'card'.*or balanced"),
        (["class_weights=[1,2,3,4,5,6,7]"], "class_weights has 7 numbers"),
        (["class_weights=balanced", "num_labels=8"], ""),
        (["class_weights=1,1,1,1,1,1", "num_labels=8"], "class_weights has 6 numbers, and .* has 8 labels"),
        (["class_weights=0,1,1,1,1,1"], r"class_weights: .* has a weight that can't be used"),
        (["class_weights=[]"], "has a weight that can't be used"),
        (["class_weights=-1,1,1,1,1,1"], "has a weight that can't be used"),
        (["class_weights=even"], "class_weights: 'even' is no number.*; or write balanced"),
        (["label_smoothing_factor=1"], "label_smoothing_factor: 1.0 is not allowed"),
        (["label_smoothing_factor=-0.1"], "label_smoothing_factor"),
        (["task=question_answering", "label_smoothing_factor=0.1"], "label_smoothing_factor is of task"),
        (["task=question_answering", "class_weights=balanced"], "class_weights is of task: classification"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(configure: Configure, sets: list[str], said: str) -> None:
    config = configure().config
    given = [f"dataset_id={config.dataset_id}", f"model_name={config.model_name}"]
    if not said:
        assert open_job(load_config(None, [*given, *sets]).config).task.weigher() is not None
        return
    with pytest.raises(UserError, match=said) as caught:
        open_job(load_config(None, [*given, *sets]).config)
    assert "\n" not in str(caught.value)
