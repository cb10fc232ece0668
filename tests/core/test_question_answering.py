"""Training on questions, judged by transformers' encoder on one window at a time and a search through all spans."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.load import ResolvedConfig
from isotrain.albert_core.features.compute import token_batch
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.job import build_encoder, open_job
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.albert_core.model.names import RANDOM_ARCHITECTURES
from isotrain.albert_core.model.whole import WholeModel
from isotrain.albert_core.runs.folder import RunFolder
from isotrain.albert_core.tasks.squad_score import score_predictions
from isotrain.albert_core.tokens.windows import WindowStore
from isotrain.backends.cpu import CpuBackend
from safetensors.torch import load_file
from support import forks
from support.small_job import losses, settings
from transformers import AutoModelForQuestionAnswering

Run = Callable[..., TrainResult]
Configure = Callable[..., ResolvedConfig]


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.model / "model.safetensors")


def best_answers(result: TrainResult, config: ResolvedConfig, max_tokens: int) -> dict[str, str]:
    """The answers of the finished model, one window at a time through transformers' module and a plain linear layer."""
    job = open_job(config.config)
    store, split = job.test_tokens, job.dataset.test
    assert isinstance(store, WindowStore)
    assert store.token_type_ids is not None
    assert store.num_split > 0, "contexts of one window would leave the windows untested"
    saved = weights(result.run)
    module = load_encoder(config.config.model_name, config.config.seed).module()
    module.load_state_dict({name[8:]: value for name, value in saved.items() if name.startswith("encoder.")})
    best: dict[str, tuple[float, str]] = {}
    for window, row in enumerate(store.questions):
        part = slice(store.offsets[window], store.offsets[window + 1])
        ids, types = (torch.from_numpy(flat[part].astype(np.int64))[None] for flat in (store.ids, store.token_type_ids))
        with torch.no_grad():
            state = module(input_ids=ids, token_type_ids=types).last_hidden_state[0]
        start, end = (state @ saved["head.output.weight"].T + saved["head.output.bias"]).T.tolist()
        spans = store.spans[part].tolist()
        for first in range(len(spans)):
            for last in range(first, min(first + max_tokens, len(spans))):
                if spans[first][0] >= 0 and spans[last][0] >= 0:
                    text = split.contexts[row][spans[first][0] : spans[last][1]].strip()
                    found = (start[first] + end[last], text)
                    best[split.ids[row]] = max(found, best.get(split.ids[row], (-np.inf, "")))
    return {name: text for name, (_, text) in best.items()}


@pytest.mark.parametrize(
    "keys", [{"layout": "bucketed"}, {"layout": "padded"}, {"layout": "packed"}, {"loss_over_padding": True}]
)
def test_the_answers_are_the_best_spans_of_all_windows(
    run: Run, configure: Configure, reading: dict[str, Any], keys: dict[str, Any]
) -> None:
    keys = reading | {"layout": "auto", "max_answer_length": 9, "n_best_size": 5} | keys
    result = run(**keys)
    predictions = json.loads((result.run.path / "predictions.json").read_text())
    assert predictions == best_answers(result, configure(**keys), 9)
    split = open_job(configure(**keys).config).dataset.test
    score = score_predictions(
        predictions,
        {name: [answer.text for answer in given] for name, given in zip(split.ids, split.answers, strict=True)},
    )
    assert (result.metrics["eval/exact_match"], result.metrics["eval/f1"]) == (score.exact_match, score.f1)
    n_best = json.loads((result.run.path / "nbest_predictions.json").read_text())
    for name, found in n_best.items():
        assert len(found) == 5
        assert found[0]["text"] == predictions[name]
        scores = [item["start_logit"] + item["end_logit"] for item in found]
        assert scores == sorted(scores, reverse=True)


def test_padding_changes_no_loss_and_parts_of_a_batch_are_the_batch(run: Run, reading: dict[str, Any]) -> None:
    # Longer than the contexts, so that the padded batches are wider than the bucketed ones.
    once = reading | {"steps_freq": 1, "num_epochs": 1, "max_length": 128}
    bucketed = losses(run(**once))
    padded = losses(run(**once, layout="padded"))
    whole = losses(run(**once | {"batch_size": 8, "gradient_accumulation_steps": 1}))
    assert len(bucketed) == 4
    for other in (padded, whole):
        np.testing.assert_allclose(other, bucketed, rtol=2e-6)


def test_loss_and_chance_over_padding_are_those_of_transformers_own_loss(
    run: Run, configure: Configure, reading: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The training's losses are compared in tests/reference; this is the evaluation's."""
    keys = reading | {"layout": "auto", "loss_over_padding": True, "max_length": 64}
    result = run(**keys)
    assert "padding counts in the loss" in (result.run.path / "train.log").read_text()
    job = open_job(configure(**keys).config)
    store = job.test_tokens
    assert job.layout == "padded"
    assert job.task.chance_loss(store) == pytest.approx(np.log(64))
    assert store.lengths.mean() < 60, "windows without padding would hide that it counts"
    config = load_encoder("random:tiny", 23).module().config
    reader = AutoModelForQuestionAnswering.from_config(config)
    saved = weights(result.run)
    renamed = {name.replace("head.output", "qa_outputs"): value for name, value in saved.items()}
    own = {name.replace("encoder.", "albert.", 1): value for name, value in renamed.items()}
    reader.load_state_dict(own)
    batch = token_batch(store, np.arange(store.num_texts), "padded", 64)
    starts, ends = torch.from_numpy(store.labels.astype(np.int64)).T
    with torch.no_grad():
        expected = reader.eval()(
            batch.input_ids, batch.attention_mask, batch.token_type_ids, start_positions=starts, end_positions=ends
        ).loss
    assert result.metrics["eval/loss"] == pytest.approx(float(expected), rel=1e-6)
    assert load_predictor(result.run).layout != "padded", "predictions have no loss, and would be slower"


def test_where_padding_counts_no_layout_is_measured(
    configure: Configure, reading: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuBackend, "traits", replace(CpuBackend.traits, measures_layout=True))
    monkeypatch.setattr("isotrain.albert_core.loop.job._layout_choice", lambda *_: pytest.fail("it is padded"))
    assert open_job(configure(**reading | {"layout": "auto", "loss_over_padding": True}).config).layout == "padded"


def test_it_learns_to_read(run: Run, reading: dict[str, Any]) -> None:
    result = run(**reading | {"num_epochs": 12, "learning_rate": 2e-3, "lr_scheduler_type": "linear"})
    first, last = losses(result)[0][1], losses(result)[-1][1]
    assert last < 0.6 * first


@pytest.mark.parametrize("freeze_encoder", [False, True])
def test_a_resumed_run_ends_with_the_same_bits(run: Run, reading: dict[str, Any], freeze_encoder: bool) -> None:
    reading |= {"freeze_encoder": freeze_encoder}
    whole = run(**reading, run_name="whole")
    run(**reading, run_name="parts", stop_at_step=3)
    parts = run(**reading, run_name="parts", resume=RunFolder(whole.run.path.parent / "parts"))
    one, two = weights(whole.run), weights(parts.run)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert parts.metrics == whole.metrics


def test_a_run_goes_on_with_the_loss_that_it_began_with(run: Run, reading: dict[str, Any]) -> None:
    keys = reading | {"layout": "padded"}
    begun = run(**keys, stop_at_step=3)
    with pytest.raises(UserError, match="loss_over_padding"):
        run(**keys, loss_over_padding=True, resume=begun.run)


KILLED = """
import sys
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.train import train
train(load_config(None, sys.argv[1:]))
"""


def test_a_killed_run_goes_on_to_the_same_bits(
    run: Run, reading: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The model of the process that is killed.
    monkeypatch.setitem(RANDOM_ARCHITECTURES["tiny"], "vocab_size", 30_000)
    keys = reading | {"save_strategy": "step", "steps_freq": 1}
    whole = run(**keys, run_name="whole")
    sets = settings(Path(reading["dataset_id"]), tmp_path, **keys | {"run_name": "killed", "num_epochs": 2})
    folder = tmp_path / "runs" / "killed"
    with forks.Popen(["-c", KILLED, *sets]) as child:
        while not list(folder.glob("checkpoints/step-*2")) and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert not RunFolder(folder).is_complete(), "the run ended before it could be killed"
    resumed = run(**keys, run_name="killed", resume=RunFolder(folder))
    assert all(torch.equal(value, weights(resumed.run)[name]) for name, value in weights(whole.run).items())


def test_a_frozen_encoder_keeps_its_weights_and_stays_out_of_checkpoints(run: Run, reading: dict[str, Any]) -> None:
    result = run(**reading | {"freeze_encoder": True, "learning_rate": 1e-2})
    assert losses(result)[-1][1] < losses(result)[0][1]
    trained, given = weights(result.run), load_encoder("random:tiny", 23).module().state_dict()
    assert {name.split(".")[0] for name in trained} == {"encoder", "head"}
    assert all(torch.equal(trained[f"encoder.{name}"], tensor) for name, tensor in given.items())
    kept = load_file(next(result.run.checkpoints.glob("step-*")) / "model.safetensors")
    assert {name.split(".")[0] for name in kept} == {"head"}


@pytest.mark.parametrize("frozen", [True, False])
def test_only_a_trained_encoder_has_dropout(configure: Configure, reading: dict[str, Any], frozen: bool) -> None:
    job = open_job(configure(**reading | {"freeze_encoder": frozen}).config)
    head = job.task.head(job.encoder.config.hidden_size, 2, job.config)
    model = WholeModel(
        build_encoder(job.encoder, job.config), head, job.task.apply_head, job.backend, job.policy
    ).train()
    assert model.head.training
    assert {part.training for part in model.encoder.modules()} == {not frozen}


@pytest.mark.parametrize("freeze_encoder", [False, True])
def test_new_questions_get_the_answers_of_the_evaluation(
    run: Run, reading: dict[str, Any], freeze_encoder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(**reading | {"freeze_encoder": freeze_encoder})
    predictor = load_predictor(result.run)
    monkeypatch.setattr(predictor.backend, "traits", replace(predictor.backend.traits, feature_batch_tokens=128))
    split = open_job(predictor.config).dataset.test
    found = predictor.predict(split.questions, split.contexts)
    assert {name: item.text for name, item in zip(split.ids, found, strict=True)} == json.loads(
        (result.run.path / "predictions.json").read_text()
    )
    for item, context in zip(found, split.contexts, strict=True):
        assert context[item.start :].startswith(item.text)
        assert 0 < item.probability <= 1


def test_a_lost_answer_is_said_in_the_log(run: Run, reading: dict[str, Any], tmp_path: Path) -> None:
    context = "Anna keeps a red bicycle in the cellar and " * 12
    row = {"id": "x", "question": "Who?", "context": context, "answers": {"text": [context[:400]], "answer_start": [0]}}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    (tmp_path / "val.jsonl").write_text(json.dumps(row | {"answers": {"text": ["Anna"], "answer_start": [0]}}))
    result = run(**reading | {"dataset_id": str(tmp_path), "num_epochs": 1})
    log = (result.run.path / "train.log").read_text()
    assert "whole in no window, and so lost to training: 1 of 1 answer" in log
    assert log.count("whole in no window") == 1
    assert "contexts in several: 1" in log


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_labels": 3}, "has 2 ends; drop num_labels"),
        ({"label_rules": ["case"]}, "drop label_rules"),
        ({"checkpoint_metric": "eval/accuracy"}, "allowed are eval/loss, eval/exact_match, eval/f1"),
        ({"doc_stride": 60}, "lower doc_stride"),
        ({"max_train_samples": 0}, "max_train_samples"),
        ({"loss_over_padding": True, "layout": "packed"}, "set layout: padded or auto, or loss_over_padding: false"),
        ({"loss_over_padding": True, "kernel": "native"}, "without torch.compile and loss_over_padding"),
        (
            {"loss_over_padding": True, "kernel": "native", "freeze_encoder": True},
            "without torch.compile and loss_over_padding",
        ),
        ({"loss_over_padding": True, "task": "regression"}, "loss_over_padding is of task: question_answering"),
    ],
)
def test_what_does_not_fit_is_refused(run: Run, reading: dict[str, Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(**reading | change)


def test_a_sample_of_the_questions_is_chosen_by_the_seed(configure: Configure, reading: dict[str, Any]) -> None:
    def ids(seed: int) -> tuple[list[str], list[str]]:
        keys = reading | {"max_train_samples": 10, "max_eval_samples": 500, "seed": seed}
        data = open_job(configure(**keys).config).dataset
        return data.train.ids, data.test.ids

    (train, test), (again, _), (other, _) = ids(1), ids(1), ids(2)
    assert len(train) == 10
    assert train == again != other
    assert len(test) == 12
    assert train == sorted(train, key=lambda name: int(name[1:]))
