"""The loop, judged by a plain transformers + torch script, and by its own promises."""

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
from isotrain.albert_core.loop.events import TrainingError
from isotrain.albert_core.loop.job import open_job
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.albert_core.model.head import ClassificationHead
from isotrain.albert_core.tokens.order import epoch_order
from safetensors.torch import load_file
from support.small_job import losses, metrics
from support.small_pairs import write_pairs
from support.small_questions import write_questions
from support.small_tasks import write_scores, write_topics, write_unanswerable

Run = Callable[..., TrainResult]
Configure = Callable[..., ResolvedConfig]


def final_weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(result.run.model / "model.safetensors")


def same_weights(first: TrainResult, second: TrainResult) -> bool:
    one, two = final_weights(first), final_weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def plain_script(resolved: ResolvedConfig, whole_model: bool = False) -> tuple[list[float], float]:
    """The same job by hand: transformers' model, torch's optimizer, padded batches; (loss a step, test accuracy)."""
    config, job = resolved.config, open_job(resolved.config)
    model = load_encoder(config.model_name, config.seed).module()
    head = ClassificationHead(model.config.hidden_size, config.mlp_hidden_size, job.num_labels, config.seed)
    trained = [*model.parameters(), *head.parameters()] if whole_model else list(head.parameters())
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)

    def logits(store: Any, rows: np.ndarray) -> torch.Tensor:
        texts = [torch.from_numpy(store.ids[store.offsets[i] : store.offsets[i + 1]].astype(np.int64)) for i in rows]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        with torch.set_grad_enabled(whole_model and torch.is_grad_enabled()):
            features = model(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        return head(features)

    history = []
    for epoch in range(config.num_epochs):
        order = epoch_order(job.train_tokens.num_texts, config.seed, epoch)
        for start in range(0, len(order), config.batch_size):
            rows = order[start : start + config.batch_size]
            labels = torch.from_numpy(job.train_tokens.labels[rows].copy())
            loss = torch.nn.functional.cross_entropy(logits(job.train_tokens, rows), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(float(loss.detach()))
    with torch.no_grad():
        predicted = logits(job.test_tokens, np.arange(job.test_tokens.num_texts)).argmax(1).numpy()
    return history, float((predicted == job.test_tokens.labels).mean())


@pytest.mark.parametrize("feature_cache", [True, False])
@pytest.mark.parametrize("layout", ["packed", "padded", "bucketed"])
def test_losses_are_those_of_a_plain_script(run: Run, configure: Configure, feature_cache: bool, layout: str) -> None:
    overrides = {
        "feature_cache": feature_cache,
        "layout": layout,
        "steps_freq": 1,
        "weight_decay": 0.01,
        "learning_rate": 3e-3,
    }
    expected, accuracy = plain_script(configure(**overrides))
    result = run(**overrides)
    got = [loss for _, loss in losses(result)]
    assert len(got) == len(expected) == 24
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    assert result.metrics["eval/accuracy"] == accuracy
    assert np.mean(expected[12:]) < np.mean(expected[:12]) - 0.02, "a job that learns nothing would prove nothing"


def test_whole_model_losses_are_those_of_a_plain_script(run: Run, configure: Configure) -> None:
    overrides = {"freeze_encoder": False, "steps_freq": 1, "learning_rate": 1e-3}
    expected, accuracy = plain_script(configure(**overrides), whole_model=True)
    result = run(**overrides)
    np.testing.assert_allclose([loss for _, loss in losses(result)], expected, rtol=0, atol=2e-5)
    assert abs(result.metrics["eval/accuracy"] - accuracy) <= 1 / 30


def test_four_times_two_equals_eight(run: Run) -> None:
    whole = run(batch_size=8, steps_freq=1, run_name="whole")
    parts = run(batch_size=2, gradient_accumulation_steps=4, steps_freq=1, run_name="parts")
    assert whole.total_steps == parts.total_steps == 24, "90 texts: the last window of an epoch holds 2"
    np.testing.assert_allclose(
        [loss for _, loss in losses(parts)], [loss for _, loss in losses(whole)], rtol=0, atol=2e-6
    )
    for name, tensor in final_weights(whole).items():
        torch.testing.assert_close(final_weights(parts)[name], tensor, rtol=0, atol=2e-5)


def test_same_seed_same_bits_other_seed_other_losses(run: Run) -> None:
    first, again, other = run(run_name="a"), run(run_name="b"), run(run_name="c", seed=24)
    assert same_weights(first, again)
    assert losses(first) == losses(again)
    assert losses(first) != losses(other)


def test_evaluation_never_changes_training(run: Run) -> None:
    rare = run(run_name="rare")
    often = run(run_name="often", val_steps_freq=1)
    assert same_weights(rare, often)
    assert losses(rare) == losses(often)
    evaluated = [item["step"] for item in metrics(often) if "eval/loss" in item]
    assert evaluated == list(range(1, 25))


def test_evaluation_never_changes_training_with_dropout(run: Run, dropping_model: Path) -> None:
    overrides = {"model_name": str(dropping_model), "freeze_encoder": False, "max_steps": 3, "learning_rate": 1e-3}
    rare = run(run_name="rare", **overrides)
    often = run(run_name="often", val_steps_freq=1, **overrides)
    assert same_weights(rare, often)


@pytest.mark.parametrize("overrides", [{}, {"feature_cache": False}, {"freeze_encoder": False, "learning_rate": 1e-3}])
@pytest.mark.parametrize("stop", [1, 5, 12, 13, 23])
def test_resume_is_bit_exact(run: Run, stop: int, overrides: dict[str, Any]) -> None:
    common = {
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "max_grad_norm": 0.5,
    } | overrides
    straight = run(run_name="straight", **common)
    first = run(run_name="cut", stop_at_step=stop, **common)
    assert first.status == "stopped"
    assert first.step == stop
    second = run(run_name="cut", resume=first.run, **common)
    assert second.status == "completed"
    assert same_weights(straight, second)
    assert losses(straight) == losses(second)
    wanted = [(m["step"], m["eval/loss"]) for m in metrics(straight) if "eval/loss" in m]
    assert [(m["step"], m["eval/loss"]) for m in metrics(second) if "eval/loss" in m] == wanted


def test_resume_restores_dropouts_generator(run: Run, dropping_model: Path) -> None:
    common = {"model_name": str(dropping_model), "freeze_encoder": False, "max_steps": 4, "learning_rate": 1e-3}
    straight = run(run_name="straight", **common)
    first = run(run_name="cut", stop_at_step=2, **common)
    assert same_weights(straight, run(resume=first.run, **common))


@pytest.mark.parametrize("optim", ["adamw_torch", "adam", "sgd", "adafactor", "rmsprop", "adagrad"])
def test_every_optimizer_trains_and_resumes(run: Run, optim: str) -> None:
    common = {"optim": optim, "learning_rate": 1e-2, "momentum": 0.9 if optim in ("sgd", "rmsprop") else 0.0}
    straight = run(run_name="straight", **common)
    first = run(run_name="cut", stop_at_step=7, **common)
    assert same_weights(straight, run(resume=first.run, **common))
    assert losses(straight)[-1][1] < losses(straight)[0][1]


def test_optimizers_differ(run: Run) -> None:
    names = ["adamw_torch", "adam", "sgd", "adafactor", "rmsprop", "adagrad"]
    results = {name: losses(run(optim=name, run_name=name, weight_decay=0.1)) for name in names}
    assert len({str(value) for value in results.values()}) == len(names)


def test_nan_stops_with_a_clear_message_and_keeps_checkpoints(run: Run, configure: Configure) -> None:
    with pytest.raises(TrainingError, match="lower learning_rate"):
        run(optim="sgd", learning_rate=1e30, run_name="diverging", save_strategy="step", steps_freq=1)
    folder = Path(configure().config.project_dir) / "diverging"
    for file in (folder / "checkpoints").glob("step-*/model.safetensors"):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(file).values())
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        assert math.isfinite(json.loads(line)["train/loss"])


def test_the_run_folder_says_what_happened(run: Run) -> None:
    result = run()
    summary = json.loads(result.run.summary.read_text())
    assert summary["status"] == "completed"
    assert summary["random_weights"] is True
    assert "random weights" in summary["model"]
    assert summary["eval/accuracy"] == result.metrics["eval/accuracy"]
    record = json.loads((result.run.path / "run.json").read_text())
    assert record["random_weights"] is True
    assert record["environment"]["torch"] == torch.__version__
    first = metrics(result)[0]
    assert {"step", "epoch", "train/loss", "samples_per_second"} <= first.keys()
    evaluated = next(item for item in metrics(result) if "eval/loss" in item)
    assert {"step", "epoch", "eval/loss", "eval/accuracy", "eval/f1_macro"} <= evaluated.keys()
    assert "feature cache on" in (result.run.path / "train.log").read_text()


# By task: data for it, and the names that `evaluate` gives its figures. Those that are numbers of questions are in
# eval.json.
EVALUATES: dict[str, tuple[Callable[[Path], Path], set[str]]] = {
    "classification": (write_pairs, {"accuracy", "f1"}),
    "multi_label_classification": (write_topics, {"accuracy"}),
    "regression": (write_scores, {"pearsonr", "spearmanr"}),
    "question_answering": (write_questions, {"exact_match", "f1"}),
    "question_answering_v2": (
        write_unanswerable,
        {
            *("exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1"),
            *("best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh"),
        },
    ),
}


@pytest.mark.parametrize("task", EVALUATES)
def test_figures_have_the_names_that_evaluate_gives_them(run: Run, tmp_path: Path, task: str) -> None:
    write, names = EVALUATES[task]
    result = run(task=task, dataset_id=str(write(tmp_path / "data")), max_length=64, doc_stride=12, max_steps=1)
    (evaluated,) = (item for item in metrics(result) if "eval/loss" in item)
    assert {f"eval/{name}" for name in names} <= evaluated.keys()


def test_macro_f1_is_scikit_learns(run: Run) -> None:
    from isotrain.albert_core.inference.predict import load_predictor
    from sklearn.metrics import accuracy_score, f1_score

    result = run()
    job = open_job(_config_of(result))
    predicted = [item.label_id for item in load_predictor(result.run).predict(job.dataset.test.texts)]
    assert result.metrics["eval/accuracy"] == pytest.approx(accuracy_score(job.dataset.test.labels, predicted))
    assert result.metrics["eval/f1_macro"] == pytest.approx(
        f1_score(job.dataset.test.labels, predicted, average="macro")
    )


def _config_of(result: TrainResult) -> Any:
    from isotrain.albert_core.config.load import load_config

    return load_config(result.run.config).config


def test_a_run_that_never_started_leaves_nothing(run: Run, configure: Configure) -> None:
    with pytest.raises(UserError):
        run(kernel="no-such-kernel", run_name="stillborn")
    assert not (Path(configure().config.project_dir) / "stillborn").exists()


def test_an_existing_run_is_never_written_over(run: Run) -> None:
    first = run(run_name="mine")
    before = {path: path.read_bytes() for path in first.run.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="exists already"):
        run(run_name="mine")
    assert before == {path: path.read_bytes() for path in first.run.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ({"batch_size": 4}, "batch_size"),
        ({"seed": 24}, "encoder|seed"),
        ({"mlp_hidden_size": 8}, "mlp_hidden_size"),
        ({"optim": "sgd"}, "optim"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
    ],
)
def test_a_foreign_checkpoint_is_refused_and_nothing_changes(run: Run, override: dict[str, Any], key: str) -> None:
    first = run(stop_at_step=3)
    before = {
        path: path.read_bytes() for path in first.run.path.rglob("*") if path.name != "train.log" and path.is_file()
    }
    with pytest.raises(UserError, match=key):
        run(resume=first.run, **override)
    assert before == {path: path.read_bytes() for path in before}


def test_a_damaged_checkpoint_is_refused_by_name(run: Run) -> None:
    first = run(stop_at_step=3)
    victim = next(first.run.checkpoints.glob("step-*")) / "model.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        run(resume=first.run)
    assert victim.exists()


def test_the_cached_features_are_those_of_transformers(configure: Configure) -> None:
    from isotrain.albert_core.features.compute import compute_features

    job = open_job(configure().config)
    features = compute_features(job.frozen_encoder(), job.train_tokens, job.backend, "packed", 32)
    module = job.encoder.module()
    for index in (0, 17, 89):
        ids = job.train_tokens.ids[job.train_tokens.offsets[index] : job.train_tokens.offsets[index + 1]]
        with torch.no_grad():
            wanted = module(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state[0, 0]
        torch.testing.assert_close(features[index], wanted, rtol=0, atol=1e-5)


def test_no_value_is_fetched_between_log_lines(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    for name in ("item", "__float__", "__bool__", "tolist", "numpy"):
        original = getattr(torch.Tensor, name)

        def spy(self: torch.Tensor, *args: Any, _original: Any = original, _name: str = name, **kwargs: Any) -> Any:
            fetched.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, spy)
    from isotrain.albert_core.loop import train as module

    counts = []
    step = module.optimizer_step

    def counting(*args: Any) -> torch.Tensor:
        before = len(fetched)
        loss = step(*args)
        counts.append(len(fetched) - before)
        return loss

    monkeypatch.setattr(module, "optimizer_step", counting)
    run(max_steps=12)
    assert counts == [0] * 12
    assert fetched, "the log lines fetch the loss, so a spy that sees nothing is broken"


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_whole_model_training_keeps_its_master_weights(run: Run, dtype: str) -> None:
    result = run(freeze_encoder=False, dtype=dtype, strict_dtype=True, max_steps=4, learning_rate=1e-3, steps_freq=1)
    weights = final_weights(result)
    master = {"float64": torch.float64}.get(dtype, torch.float32)
    assert {tensor.dtype for name, tensor in weights.items() if name.startswith("encoder.")} == {master}
    assert {tensor.dtype for name, tensor in weights.items() if name.startswith("head.")} == {torch.float32}
    exact = [loss for _, loss in losses(run(freeze_encoder=False, max_steps=4, learning_rate=1e-3, steps_freq=1))]
    got = [loss for _, loss in losses(result)]
    np.testing.assert_allclose(got, exact, rtol=0, atol={"float64": 1e-5, "float32": 0, "bfloat16": 0.05}[dtype])
    assert (got == exact) == (dtype == "float32"), "the dtype asked for must be the one computed in"
