"""A run's folder is all that a prediction needs: moved elsewhere, with data, model and tokenizer gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.data.questions import load_questions
from isotrain.albert_core.inference.predict import Predictor, load_predictor
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.runs.folder import open_run
from support.small_job import write_dataset

Run = Callable[..., TrainResult]
TEXTS = ["lost card", "reset password app", "fee"]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """A data folder, a model folder and a tokenizer that can be taken away."""
    from isotrain.albert_core.tokens.tokenizer import load_tokenizer
    from support.small_job import WORDS
    from transformers import BertConfig, BertModel

    tokenizer = load_tokenizer("embedded", "random:tiny", texts=[text for text in WORDS.values() for _ in range(2)])
    tokenizer.save(tmp_path / "tokenizer")
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=48,
        num_hidden_layers=2,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "model")
    write_dataset(tmp_path / "texts")
    names = {"dataset_id": "texts", "model_name": "model", "tokenizer_name": "tokenizer"}
    return {key: str(tmp_path / name) for key, name in names.items()}


def answers(predictor: Predictor) -> list[tuple[str, float]]:
    return [(item.label, item.probability) for item in predictor.predict(TEXTS)]


@pytest.mark.parametrize("freeze_encoder", [True, False])
@pytest.mark.parametrize("checkpoint", [None, "last"])
def test_a_copied_run_predicts_when_everything_else_is_gone(
    run: Run, sources: dict[str, str], tmp_path: Path, freeze_encoder: bool, checkpoint: str | None
) -> None:
    result = run(**sources, freeze_encoder=freeze_encoder, learning_rate=1e-3)
    before = load_predictor(result.run, checkpoint=checkpoint)
    wanted = answers(before)
    assert before.label == sources["model_name"]
    shutil.copytree(result.run.path, tmp_path / "elsewhere")
    for gone in [*sources.values(), result.run.path]:
        shutil.rmtree(gone)
    there = load_predictor(open_run(tmp_path / "elsewhere"), checkpoint=checkpoint)
    assert answers(there) == wanted
    assert there.label == before.label


@pytest.mark.parametrize("checkpoint", [None, "last"])
def test_a_copied_run_answers_questions_when_everything_else_is_gone(
    run: Run, sources: dict[str, str], reading: dict[str, Any], tmp_path: Path, checkpoint: str | None
) -> None:
    shutil.copytree(reading["dataset_id"], tmp_path / "questions")
    result = run(**reading | sources | {"dataset_id": str(tmp_path / "questions")})
    data = load_questions(str(tmp_path / "questions")).test
    shutil.copytree(result.run.path, tmp_path / "elsewhere")
    for gone in [*sources.values(), tmp_path / "questions", result.run.path]:
        shutil.rmtree(gone)
    there = load_predictor(open_run(tmp_path / "elsewhere"), checkpoint=checkpoint)
    assert there.label == sources["model_name"]
    answers = there.predict(data.questions, data.contexts)
    evaluated = json.loads((tmp_path / "elsewhere" / "predictions.json").read_text())
    assert {name: item.text for name, item in zip(data.ids, answers, strict=True)} == evaluated


def test_a_run_without_a_copy_says_what_it_lacks(run: Run, sources: dict[str, str], tmp_path: Path) -> None:
    result = run(**sources, copy_encoder=False)
    assert not result.run.encoder.exists()
    wanted = answers(load_predictor(result.run))
    Path(sources["model_name"]).rename(tmp_path / "moved")
    with pytest.raises(UserError, match="model_name"):
        load_predictor(result.run)
    assert answers(load_predictor(result.run, model_name=str(tmp_path / "moved"))) == wanted


def test_random_weights_are_made_again_rather_than_copied(run: Run) -> None:
    result = run()
    assert not result.run.encoder.exists()
    assert answers(load_predictor(result.run))


def test_a_copy_that_was_changed_is_refused(run: Run, sources: dict[str, str]) -> None:
    from safetensors.torch import load_file, save_file

    result = run(**sources)
    file = result.run.encoder / "model.safetensors"
    tensors = load_file(file)
    tensors["embeddings.LayerNorm.weight"] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"encoder.model\.safetensors is damaged"):
        load_predictor(result.run)
