"""Training on pairs: features and logits judged by transformers, checkpoints held to their task."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.load import ResolvedConfig
from isotrain.albert_core.features.compute import compute_features
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.job import open_job
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.runs.manifest import vouch
from sklearn.metrics import accuracy_score, f1_score
from support.small_pairs import write_pairs

Run = Callable[..., TrainResult]


@pytest.fixture(scope="session")
def pair_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_pairs(tmp_path_factory.mktemp("pairs") / "data"))


@pytest.mark.parametrize(
    ("layout", "kernel"), [("packed", "auto"), ("padded", "auto"), ("bucketed", "auto"), ("bucketed", "transformers")]
)
def test_frozen_features_of_pairs_are_those_of_transformers(
    configure: Callable[..., ResolvedConfig], pair_data: str, layout: str, kernel: str
) -> None:
    job = open_job(configure(dataset_id=pair_data, layout=layout, kernel=kernel).config)
    features = compute_features(job.frozen_encoder(), job.train_tokens, job.backend, layout, 32)
    store, module = job.train_tokens, job.encoder.module()
    assert store.token_type_ids is not None
    for index in (0, 17, 63):
        where = slice(store.offsets[index], store.offsets[index + 1])
        ids, types = (
            torch.from_numpy(part[where].astype(np.int64))[None] for part in (store.ids, store.token_type_ids)
        )
        with torch.no_grad():
            wanted = module(input_ids=ids, token_type_ids=types).last_hidden_state[0, 0]
            without = module(input_ids=ids).last_hidden_state[0, 0]
        torch.testing.assert_close(features[index], wanted, rtol=0, atol=1e-5)
        assert (wanted - without).abs().max() > 1e-3, "token types that change nothing would prove nothing"


@pytest.mark.parametrize("freeze_encoder", [True, False])
def test_metrics_are_scikit_learns_of_the_predictions(run: Run, pair_data: str, freeze_encoder: bool) -> None:
    result = run(dataset_id=pair_data, freeze_encoder=freeze_encoder, learning_rate=1e-3, checkpoint_metric="eval/f1")
    predictor = load_predictor(result.run)
    data = open_job(predictor.config).dataset.test
    predicted = [item.label_id for item in predictor.predict(data.texts, data.pairs)]
    assert result.metrics["eval/accuracy"] == pytest.approx(accuracy_score(data.labels, predicted))
    assert result.metrics["eval/f1"] == pytest.approx(f1_score(data.labels, predicted, pos_label=1))
    assert result.metrics["eval/f1_macro"] == pytest.approx(f1_score(data.labels, predicted, average="macro"))


def test_many_predictions_at_once_are_those_of_one_at_a_time(
    run: Run, pair_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = load_predictor(run(dataset_id=pair_data, freeze_encoder=False, learning_rate=1e-3).run)
    data = open_job(predictor.config).dataset.train
    monkeypatch.setattr(predictor.backend, "traits", replace(predictor.backend.traits, feature_batch_tokens=64))
    together = predictor.predict(data.texts, data.pairs)
    for row in (0, 20, 63):
        assert data.pairs is not None
        (alone,) = predictor.predict([data.texts[row]], [data.pairs[row]])
        assert (alone.text, alone.text_pair) == (together[row].text, together[row].text_pair)
        assert alone.probability == pytest.approx(together[row].probability, abs=1e-6)


def test_f1_is_asked_of_two_labels_only(run: Run) -> None:
    with pytest.raises(UserError, match="checkpoint_metric 'eval/f1' is no metric"):
        run(checkpoint_metric="eval/f1")
    assert "eval/f1" not in run().metrics


def test_a_checkpoint_of_another_task_is_refused(run: Run, tmp_path: Path) -> None:
    from isotrain.albert_core.runs import checkpoint
    from isotrain.albert_core.runs.checkpoint import read_checkpoint, write_checkpoint

    result = run(stop_at_step=3)
    saved = read_checkpoint(next(result.run.checkpoints.glob("step-*")))
    saved.identity["task"] = "question_answering"
    foreign = write_checkpoint(saved, tmp_path / "elsewhere")
    with pytest.raises(UserError, match="question_answering") as caught:
        load_predictor(result.run, checkpoint=str(foreign))
    assert "\n" not in str(caught.value)
    with pytest.raises(checkpoint.CheckpointError, match="task is 'question_answering' there"):
        run(resume=result.run, resume_option="path", checkpoint_path=str(foreign))


def test_weights_of_another_recipe_are_refused(run: Run, pair_data: str, tmp_path: Path) -> None:
    """Of the same task and the same shapes, so that they would load and answer with labels of other texts."""
    own = run(run_name="own", num_labels=6).run
    other = run(run_name="other", num_labels=6, dataset_id=pair_data).run
    foreign = max(other.checkpoints.glob("step-*"))
    with pytest.raises(UserError, match="trained on other texts than run") as caught:
        load_predictor(own, checkpoint=str(foreign))
    assert "\n" not in str(caught.value)
    shutil.copy(other.model / "model.safetensors", own.model)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load_predictor(own)
    vouch(own.path, ["model/model.safetensors"])
    with pytest.raises(UserError, match="trained on other texts than run"):
        load_predictor(own)
    kept = max(own.checkpoints.glob("step-*"))
    moved = shutil.copytree(kept, tmp_path / "fetched" / kept.name)
    assert load_predictor(own, checkpoint=str(moved)).predict(["lost card"]), "its own, wherever it lies"
    own.origin.write_text("[")
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        load_predictor(own, checkpoint="last")


def test_the_run_keeps_what_predictions_need(run: Run, pair_data: str) -> None:
    folder = run(dataset_id=pair_data).run
    assert json.loads(folder.inputs.read_text()) == ["sentence1", "sentence2"]
    folder.inputs.write_text("[")
    with pytest.raises(UserError, match=r"inputs\.json is damaged"):
        load_predictor(folder)
