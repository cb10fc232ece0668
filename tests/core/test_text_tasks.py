"""Several labels a text, and numbers: every way through the loop has the losses of a plain one, and its answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.load import ResolvedConfig
from isotrain.albert_core.inference.export import export_run
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.collapse import CollapseWatch
from isotrain.albert_core.loop.job import open_job
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.runs.folder import RunFolder
from isotrain.albert_core.tasks import TASKS
from isotrain.albert_core.tokens.order import epoch_order
from safetensors.torch import load_file
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score
from support.small_job import losses, metrics
from support.small_tasks import write_scores, write_topics

Run = Callable[..., TrainResult]
Configure = Callable[..., ResolvedConfig]

FROZEN = {"learning_rate": 1e-2, "num_epochs": 1, "steps_freq": 1}
WHOLE = FROZEN | {"freeze_encoder": False, "learning_rate": 1e-3}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tasks")
    return {
        "multi_label_classification": str(write_topics(folder / "topics")),
        "regression": str(write_scores(folder / "scores")),
    }


@pytest.fixture(params=["multi_label_classification", "regression"])
def keys(request: pytest.FixtureRequest, folders: dict[str, str]) -> dict[str, Any]:
    """The keys of a small job of one of the tasks."""
    return {"task": request.param, "dataset_id": folders[request.param], "save_strategy": "no"}


def plain_losses(config: ResolvedConfig) -> list[float]:
    """The head's losses on frozen features, by torch's own loss modules."""
    from isotrain.albert_core.features.compute import compute_features

    job, keys = open_job(config.config), config.config
    features = compute_features(job.frozen_encoder(), job.train_tokens, job.backend, job.layout, keys.max_length)
    labels = torch.from_numpy(job.train_tokens.labels)
    head = job.task.head(features.shape[1], job.num_labels, keys)
    optimizer = torch.optim.AdamW(head.parameters(), lr=keys.learning_rate, weight_decay=0.0)
    loss_of = torch.nn.MSELoss() if keys.task == "regression" else torch.nn.BCEWithLogitsLoss()
    found = []
    order = torch.from_numpy(epoch_order(len(features), keys.seed, 0))
    for rows in order.split(keys.batch_size):
        loss = loss_of(head(features[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def test_the_losses_are_torchs_and_the_fused_step_says_why_it_stays_out(
    run: Run, configure: Configure, keys: dict[str, Any]
) -> None:
    result = run(**keys | FROZEN)
    np.testing.assert_allclose(
        [loss for _, loss in losses(result)], plain_losses(configure(**keys | FROZEN)), rtol=2e-6
    )
    log = (result.run.path / "train.log").read_text()
    assert f"no fused step computes the loss of task {keys['task']}" in log
    accuracies = ["train/accuracy" in item for item in metrics(result) if "train/loss" in item]
    assert set(accuracies) == {keys["task"] != "regression"}


@pytest.mark.parametrize(
    "change",
    [
        {"layout": "padded"},
        {"layout": "bucketed", "kernel": "transformers"},
        {"feature_cache": False},
        {"batch_size": 4, "gradient_accumulation_steps": 2},
        {"eval_batch_size": 5},
    ],
)
def test_every_way_to_the_features_has_the_same_losses(run: Run, keys: dict[str, Any], change: dict[str, Any]) -> None:
    straight, other = run(**keys | FROZEN), run(**keys | FROZEN | change)
    np.testing.assert_allclose(losses(other), losses(straight), rtol=1e-5)
    assert other.metrics == pytest.approx(straight.metrics, rel=1e-4)


def test_a_whole_model_has_the_same_losses_in_every_layout(run: Run, keys: dict[str, Any]) -> None:
    packed = run(**keys | WHOLE | {"layout": "packed"})
    parts = {"layout": "padded", "batch_size": 4, "gradient_accumulation_steps": 2}
    np.testing.assert_allclose(losses(run(**keys | WHOLE | parts)), losses(packed), rtol=1e-5)


@pytest.mark.parametrize("way", [FROZEN, WHOLE])
def test_a_resumed_run_ends_with_the_same_bits(run: Run, keys: dict[str, Any], way: dict[str, Any]) -> None:
    way = keys | way | {"save_strategy": "epoch"}
    whole = run(**way, run_name="whole")
    run(**way, run_name="parts", stop_at_step=5)
    parts = run(**way, run_name="parts", resume=RunFolder(whole.run.path.parent / "parts"))
    one, two = (load_file(result.run.model / "model.safetensors") for result in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert parts.metrics == whole.metrics


@pytest.mark.parametrize("way", [FROZEN, WHOLE])
def test_predictions_are_those_that_were_evaluated(run: Run, keys: dict[str, Any], way: dict[str, Any]) -> None:
    result = run(**keys | way | {"num_epochs": 3, "label_threshold": 0.4})
    predictor = load_predictor(result.run)
    data = open_job(predictor.config).dataset
    answers = [item.answer() for item in predictor.predict(data.test.texts, data.test.pairs)]
    if keys["task"] == "regression":
        given, wanted = [item["score"] for item in answers], [value for (value,) in data.test.labels]
        assert result.metrics["eval/pearsonr"] == pytest.approx(pearsonr(given, wanted).statistic, abs=1e-5)
        assert result.metrics["eval/spearmanr"] == pytest.approx(spearmanr(given, wanted).statistic, abs=1e-3)
        assert result.metrics["eval/rmse"] == pytest.approx(result.metrics["eval/loss"] ** 0.5, rel=1e-5)
        return
    flags = [[float(name in item["labels"]) for name in data.label_names] for item in answers]
    assert 0 < sum(map(sum, flags)) < len(flags) * len(data.label_names)
    for figure, average in (("f1_micro", "micro"), ("f1_macro", "macro")):
        score = f1_score(data.test.labels, flags, average=average, zero_division=0.0)
        assert result.metrics[f"eval/{figure}"] == pytest.approx(score)
    exact = np.mean([one == two for one, two in zip(flags, data.test.labels, strict=True)])
    assert result.metrics["eval/accuracy"] == pytest.approx(exact)
    for item in answers:
        assert sorted(item["probabilities"], reverse=True) == item["probabilities"]
        assert all(probability > 0.4 for probability in item["probabilities"])


def test_they_learn_and_the_best_is_kept(run: Run, keys: dict[str, Any]) -> None:
    metric, worst = ("eval/rmse", 1.65) if keys["task"] == "regression" else ("eval/f1_micro", 0.35)
    result = run(**keys | {"num_epochs": 12, "save_strategy": "epoch", "checkpoint_metric": metric, "chart": [metric]})
    scores = {item["step"]: item[metric] for item in metrics(result) if metric in item}
    best = (min if metric == "eval/rmse" else max)(scores, key=lambda step: scores[step])
    assert result.best["step"] == best
    assert (result.best[metric] < worst) == (metric == "eval/rmse")
    assert not result.collapse
    assert metric in (result.run.path / "chart.html").read_text()
    example = open_job(load_predictor(result.run).config).dataset.test.example
    (answer,) = load_predictor(result.run, checkpoint="best").predict(example[:1], example[1:] or None)
    assert set(answer.asked()) == ({"text", "text_pair"} if keys["task"] == "regression" else {"text"})


def test_several_numbers_at_once(run: Run, tmp_path: Path) -> None:
    rows = [{"text": f"{'card ' * n} loan", "low": n, "high": 10 - 2 * n} for n in range(1, 5)] * 4
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"task": "regression", "dataset_id": str(tmp_path), "label_columns": ["low", "high"]}
    result = run(**keys | FROZEN | {"num_epochs": 40, "save_strategy": "no"})
    assert result.metrics["eval/pearsonr"] > 0.9
    (answer,) = load_predictor(result.run).predict(["card card loan"])
    assert list(answer.answer()) == ["low", "high"]
    assert answer.answer()["high"] == pytest.approx(6, abs=1.5)


@pytest.mark.parametrize("form", ["transformers", "safetensors", "torch-export"])
def test_an_export_gives_the_same_outputs(run: Run, keys: dict[str, Any], tmp_path: Path, form: str) -> None:
    result = run(**keys | FROZEN)
    exported = export_run(result.run, form, tmp_path / "exported")
    assert exported.relative_l2 < 1e-5
    if form != "torch-export":
        config = json.loads((tmp_path / "exported" / "config.json").read_text())
        assert config["problem_type"] == keys["task"]
        assert list(config["label2id"]) == open_job(load_predictor(result.run).config).dataset.label_names


def test_chance_is_what_the_labels_alone_give(configure: Configure, folders: dict[str, str]) -> None:
    for name, folder in folders.items():
        job = open_job(configure(task=name, dataset_id=folder).config)
        labels = torch.from_numpy(job.train_tokens.labels).double()
        means = labels.mean(dim=0).expand_as(labels)
        constant = means if name == "regression" else means.logit()
        chance = job.task.chance_loss(job.train_tokens)
        loss, right = job.task.loss(constant, labels)
        assert chance == pytest.approx(float(loss) / len(labels))
        if name == "regression":
            assert float(right) == 0
        # A model that goes from well below chance back to it has collapsed, and one that begins above it has not.
        watch = CollapseWatch(chance)
        assert not any(watch.after_log(step, 3 * chance, None) for step in range(20))
        assert not any(watch.after_log(step, 0.5 * chance, None) for step in range(20, 40))
        assert any(watch.after_log(step, 0.99 * chance, None) for step in range(40, 60))


@pytest.mark.parametrize("name", ["multi_label_classification", "regression"])
def test_padding_rows_count_in_neither_loss_nor_gradient(name: str) -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([[1.0, 0.0, 1.0]] * 4)
    labels[2:] = torch.nan
    loss, right = TASKS[name].loss(logits, labels)
    alone, alone_right = TASKS[name].loss(logits[:2], labels[:2])
    assert float(loss.detach()) == pytest.approx(float(alone.detach()), rel=1e-6)
    assert float(right) == float(alone_right)
    loss.backward()
    assert logits.grad is not None
    assert bool((logits.grad[2:] == 0).all())
    assert bool((logits.grad[:2] != 0).all())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_labels": 9}, "num_labels is 9, but .* has [16]; drop num_labels"),
        ({"label_rules": ["case"]}, "has none; drop label_rules"),
        ({"checkpoint_metric": "eval/exact_match"}, "allowed are eval/loss, eval/"),
        ({"label_columns": ["a", "a"]}, "names a column twice"),
        ({"label_columns": ["a"], "label_column": "b"}, "are both set"),
        ({"label_columns": ["a", "b"]}, "has no column 'a'"),
        ({"task": "classification", "label_columns": ["a"]}, "label_columns are several"),
    ],
)
def test_what_does_not_fit_is_refused(run: Run, keys: dict[str, Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(**keys | change)
