"""Questions that may have no answer: what is read, trained on, scored, answered and refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.load import ResolvedConfig
from isotrain.albert_core.data.questions import load_questions
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.job import open_job
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.runs.folder import RunFolder
from isotrain.albert_core.tasks.spans import WindowLogits, found_answers
from isotrain.albert_core.tasks.squad_score_v2 import score_v2
from isotrain.albert_core.tokens.windows import WindowStore
from safetensors.torch import load_file
from support.small_questions import question, squad
from support.small_tasks import write_unanswerable

Run = Callable[..., TrainResult]
Configure = Callable[..., ResolvedConfig]

CONTEXT = "Anna lives in Rome. Rome is old."


@pytest.fixture(scope="session")
def unanswerable_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unanswerable(tmp_path_factory.mktemp("unanswerable") / "data", sentences=6)


@pytest.fixture
def keys(reading: dict[str, Any], unanswerable_data: Path) -> dict[str, Any]:
    changed = {
        "task": "question_answering_v2",
        "dataset_id": str(unanswerable_data),
        "checkpoint_metric": "eval/best_f1",
    }
    return reading | changed


def given(result: TrainResult, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((result.run.path / name).read_text())
    return found


def test_null_is_the_least_likely_empty_span_of_all_windows() -> None:
    spans = np.array([(-1, -1), (0, 4), (5, 10), (-1, -1)])
    one = WindowLogits(np.array([3.0, 1.0, 0.0, 9.0]), np.array([2.0, 0.0, 2.5, 9.0]), spans)
    two = WindowLogits(np.array([1.0, 1.5, 0.0, 9.0]), np.array([0.5, 1.0, 0.0, 9.0]), spans)
    found = found_answers(CONTEXT, [one, two], 20, 30)
    assert (found.spans[0].text, found.spans[0].score) == (CONTEXT[:10], 3.5)
    assert (found.null.text, found.null.score, found.odds) == ("", 1.5, 1.5 - 3.5)
    nowhere = WindowLogits(np.ones(2), np.ones(2), np.full((2, 2), -1))
    assert found_answers(CONTEXT, [nowhere], 20, 30).odds == 2.0


@pytest.mark.parametrize("padded", [False, True])
def test_windows_of_unanswerable_questions_point_at_cls_and_no_answer_is_lost(
    configure: Configure, keys: dict[str, Any], caplog: pytest.LogCaptureFixture, padded: bool
) -> None:
    job = open_job(configure(**keys | {"layout": "padded", "loss_over_padding": padded}).config)
    store = job.train_tokens
    assert isinstance(store, WindowStore)
    answered = np.array([bool(known) for known in job.dataset.train.answers])
    assert 0 < answered.sum() < len(answered)
    assert (store.labels[~answered[store.questions]] == 0).all()
    assert set(store.questions[store.labels[:, 1] > 0]) == set(np.flatnonzero(answered))
    assert "lost to training" not in caplog.text
    # A model that knows how many windows have no answer, and points anywhere else otherwise.
    share = (store.labels[:, 1] == 0).mean()
    tokens = np.full_like(store.lengths, job.config.max_length) if padded else store.lengths
    losses = [
        -math.log(share) if end == 0 else -math.log((1 - share) / (length - 1))
        for end, length in zip(store.labels[:, 1], tokens, strict=True)
    ]
    assert job.task.chance_loss(store) == pytest.approx(np.mean(losses))
    assert job.task.chance_loss(store) < np.log(tokens).mean()


@pytest.mark.parametrize("layout", ["bucketed", "packed"])
@pytest.mark.parametrize("threshold", [None, -0.5, 1e6, -1e6])
def test_the_figures_are_those_of_the_files(
    run: Run, keys: dict[str, Any], layout: str, threshold: float | None
) -> None:
    result = run(**keys | {"layout": layout, "null_threshold": threshold, "num_epochs": 1, "save_strategy": "no"})
    predictions, odds, n_best = (
        given(result, f"{name}.json") for name in ("predictions", "null_odds", "nbest_predictions")
    )
    split = load_questions(keys["dataset_id"], unanswerable=True).test
    answers = {name: [one.text for one in known] for name, known in zip(split.ids, split.answers, strict=True)}
    spans = {}
    for name, found in n_best.items():
        (empty,) = (item for item in found if item["text"] == "")
        full = [item for item in found if item["text"]]
        scores = [item["start_logit"] + item["end_logit"] for item in full]
        assert scores == sorted(scores, reverse=True)
        assert odds[name] == empty["start_logit"] + empty["end_logit"] - scores[0]
        assert sum(item["probability"] for item in found) == pytest.approx(1.0)
        assert predictions[name] == found[0]["text"]
        spans[name] = full[0]["text"]
    figures = score_v2(spans, answers, odds, threshold).figures()
    assert given(result, "eval.json") == figures
    named = {name.removeprefix("eval/"): value for name, value in result.metrics.items()}
    used = named.pop("null_threshold")
    assert named == {"loss": named["loss"], **{name: figures[name] for name in figures if "total" not in name}}
    # What is handed in scores the same without the odds.
    handed_in = score_v2(predictions, answers, dict.fromkeys(answers, 0.0), 1.0).figures()
    for name in ("exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1", "total"):
        assert handed_in[name] == figures[name]
    limit = figures["best_f1_thresh"] if threshold is None else threshold
    assert {name: text == "" for name, text in predictions.items()} == {name: odds[name] > limit for name in odds}
    # The threshold for new questions is no question's own odds, which rounding could put on either side of it.
    above = min((other for other in odds.values() if other > limit), default=limit)
    assert used == (pytest.approx((limit + above) / 2) if threshold is None else threshold)


@pytest.mark.parametrize("threshold", [None, 0.25])
@pytest.mark.parametrize("freeze_encoder", [False, True])
def test_new_questions_get_the_answers_of_the_evaluation(
    run: Run, keys: dict[str, Any], freeze_encoder: bool, threshold: float | None
) -> None:
    result = run(**keys | {"freeze_encoder": freeze_encoder, "null_threshold": threshold, "num_epochs": 3})
    split = load_questions(keys["dataset_id"], unanswerable=True).test
    for checkpoint in (None, "last"):
        found = load_predictor(result.run, checkpoint=checkpoint).predict(split.questions, split.contexts)
        answers = dict(zip(split.ids, (item.answer() for item in found), strict=True))
        assert {name: item["answer"] for name, item in answers.items()} == given(result, "predictions.json")
        probabilities = {name: item[0]["probability"] for name, item in given(result, "nbest_predictions.json").items()}
        assert {name: item["score"] for name, item in answers.items()} == pytest.approx(probabilities, abs=1e-5)


def test_a_checkpoint_has_its_own_threshold(run: Run, keys: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    every = {"save_strategy": "step", "steps_freq": 2, "keep_last_n": 9, "max_steps": 4, "val_steps_freq": 4}
    result = run(**keys | every)
    threshold = load_predictor(result.run).config.null_threshold
    assert threshold == result.metrics["eval/null_threshold"]
    last = result.run.checkpoints / "step-00000004"
    assert load_predictor(result.run, checkpoint=str(last)).config.null_threshold == threshold
    assert "is 0" not in caplog.text
    before = load_predictor(result.run, checkpoint=str(result.run.checkpoints / "step-00000002"))
    assert before.config.null_threshold == 0.0
    assert "no evaluation of these weights has found a threshold" in caplog.text


def test_it_learns_what_has_no_answer(run: Run, keys: dict[str, Any]) -> None:
    result = run(**keys | {"num_epochs": 12, "learning_rate": 2e-3, "save_strategy": "no"})
    assert result.metrics["eval/NoAns_f1"] > 60
    assert not result.collapse


def test_a_resumed_run_ends_with_the_same_bits(run: Run, keys: dict[str, Any]) -> None:
    whole = run(**keys, run_name="whole")
    run(**keys, run_name="parts", stop_at_step=3)
    parts = run(**keys, run_name="parts", resume=RunFolder(whole.run.path.parent / "parts"))
    one, two = (load_file(result.run.model / "model.safetensors") for result in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert parts.metrics == whole.metrics
    with pytest.raises(UserError, match=r"null_threshold is None there and 2\.0 here"):
        run(**keys, null_threshold=2.0, num_epochs=3, resume=RunFolder(whole.run.path.parent / "parts"))


def test_data_without_unanswerable_questions_has_no_figures_of_them(
    run: Run, keys: dict[str, Any], question_data: Path
) -> None:
    result = run(**keys | {"dataset_id": str(question_data), "num_epochs": 1})
    assert "eval/HasAns_f1" in result.metrics
    assert not [name for name in (*result.metrics, *result.metric_names) if "NoAns" in name]
    assert set(result.metrics) == set(result.metric_names)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"is_impossible": True}, "is_impossible is True, and the question has an answer; write false"),
        ({"is_impossible": False, "answers": []}, "is_impossible is False, and the question has no answer; write true"),
        ({"is_impossible": "no"}, "is_impossible is 'no'"),
        ({"is_impossible": 0}, "is_impossible is 0"),
        ({"answers": [{"text": "", "answer_start": 3}]}, "an answer is ''"),
        ({"answers": None}, 'no list of objects "answers"'),
    ],
)
def test_marks_that_contradict_the_answers_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    asked = question(1, "Where?", CONTEXT, "Rome")
    (tmp_path / "train.json").write_text(json.dumps(squad([(CONTEXT, [asked | change])])))
    with pytest.raises(UserError) as caught:
        load_questions(str(tmp_path / "train.json"), test_fraction=0.5, unanswerable=True)
    message = str(caught.value)
    assert said in message
    assert "train.json" in message
    assert "\n" not in message


def test_the_first_version_says_which_task_reads_the_second(unanswerable_data: Path) -> None:
    with pytest.raises(UserError, match="set task: question_answering_v2"):
        load_questions(str(unanswerable_data))
