"""Training on the XLA backend: the CPU backend's losses, one program a shape, one execution a step, exact resumes."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.features.compute import grid_groups
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop import start
from isotrain.albert_core.loop import train as loop
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.tokens.lengths import banking77_lengths
from isotrain.albert_core.tokens.order import BUCKETS, bucket_length, epoch_order
from safetensors.torch import load_file
from support.small_job import losses
from support.small_runs import Run, check_resume
from support.tiny_models import write_models

BANKING77_TRAIN, BANKING77_TEST = 10_003, 3_080


def worst(result: TrainResult, reference: TrainResult) -> float:
    """The largest relative difference between two runs' losses, log line by log line."""
    pairs = list(zip(losses(result), losses(reference), strict=True))
    assert all(got[0] == want[0] for got, want in pairs)
    return max(abs(got[1] - want[1]) / abs(want[1]) for got, want in pairs)


def test_losses_over_200_steps_are_the_cpu_backends(run: Run) -> None:
    job = {"num_epochs": 17, "max_steps": 200, "steps_freq": 1, "learning_rate": 1e-3, "warmup_ratio": 0.1}
    job |= {"lr_scheduler_type": "linear", "layout": "bucketed"}
    result, reference = run(**job), run(backend="cpu", **job)
    assert len(losses(result)) == 200
    assert worst(result, reference) <= 1e-5
    values = [loss for _, loss in losses(result)]
    assert np.mean(values[-12:]) < 0.9 * np.mean(values[:12])


@pytest.mark.parametrize(
    "job",
    [
        {"feature_cache": False, "layout": "padded"},
        {"gradient_accumulation_steps": 4, "feature_cache": False},
        {"gradient_accumulation_steps": 4, "max_grad_norm": 0.1},
        {"freeze_encoder": False, "learning_rate": 1e-4},
        {"kernel": "transformers", "layout": "bucketed"},
    ],
    ids=["streamed", "accumulated", "clipped", "whole model", "transformers"],
)
def test_every_way_to_train_gives_the_cpu_backends_losses(run: Run, job: dict[str, Any]) -> None:
    job = {"steps_freq": 1, "learning_rate": 1e-3} | job
    result, reference = run(**job), run(backend="cpu", **job)
    assert worst(result, reference) <= 1e-5
    for key, value in reference.metrics.items():
        assert result.metrics[key] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("optim", ["adamw_torch", "adam"])
def test_a_weight_without_a_gradient_survives_a_warm_ups_first_rate(run: Run, optim: str) -> None:
    """The rate is 0 there, and words that the first batch lacks have no gradient: 0 / 0, as torch computes it here."""
    job = {"freeze_encoder": False, "learning_rate": 1e-3, "warmup_ratio": 0.2, "optim": optim, "steps_freq": 1}
    result, reference = (run(num_epochs=1, backend=name, layout="bucketed", **job) for name in ("xla", "cpu"))
    assert worst(result, reference) <= 1e-5


def test_a_whole_model_from_a_folder_is_copied_into_its_run(run: Run, tmp_path: Path) -> None:
    model = write_models(tmp_path / "models")["albert"]
    result = run(model_name=str(model), freeze_encoder=False, max_steps=2)
    copied, given = (load_file(folder / "model.safetensors") for folder in (result.run.encoder, model))
    # The head's pooler is none of the encoder's weights.
    assert copied.keys() == {name for name in given if not name.startswith("pooler.")}
    assert all(torch.equal(copied[name], given[name]) for name in copied)


def test_bfloat16_trains_to_the_cpu_backends_metrics(run: Run) -> None:
    job = {"dtype": "bfloat16", "num_epochs": 4}
    result, reference = run(**job), run(backend="cpu", **job)
    assert result.metrics["eval/loss"] == pytest.approx(reference.metrics["eval/loss"], rel=0.05)


def count_compiles(backend: Any, work: Callable[[], Any]) -> int:
    before = backend.compile_count()
    work()
    return backend.compile_count() - before


@pytest.mark.parametrize("optim", ["adamw_torch", "adam", "sgd", "adafactor", "rmsprop", "adagrad"])
def test_no_step_but_the_first_ones_compiles(
    run: Run, backend: Any, optim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    step = loop.optimizer_step

    def counting(*args: Any) -> torch.Tensor:
        counts.append(backend.compile_count())
        return step(*args)

    monkeypatch.setattr(loop, "optimizer_step", counting)
    # A warm-up begins at 0, 90 texts end an epoch with a batch of 2, and the schedule changes the rate at every step.
    run(optim=optim, learning_rate=1e-4, warmup_ratio=0.2, lr_scheduler_type="cosine", momentum=0.9)
    # Programs that an earlier test has had compiled are not compiled again.
    evaluation = 1
    assert counts[-1] - counts[3] <= evaluation
    if optim in ("adamw_torch", "adam"):
        assert counts[3] - counts[0] <= 1


@pytest.mark.parametrize(
    "job", [{"feature_cache": False}, {"freeze_encoder": False}], ids=["frozen encoder", "whole model"]
)
def test_a_step_is_one_execution(run: Run, backend: Any, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_xla.debug import metrics

    counts: list[int] = []
    step = loop.optimizer_step

    def counting(*args: Any) -> torch.Tensor:
        backend.synchronize()
        counts.append(metrics.metric_data("ExecuteTime")[0])
        return step(*args)

    monkeypatch.setattr(loop, "optimizer_step", counting)
    run(steps_freq=3, num_epochs=1, gradient_accumulation_steps=2, max_grad_norm=1.0, **job)
    assert np.diff(counts).tolist() == [1] * (len(counts) - 1)


@pytest.fixture
def banking77_sized(tmp_path: Path) -> Path:
    """Texts of as many tokens as Banking77's, special ones included: a word of the trained vocabulary is one token."""
    folder = tmp_path / "banking77-sized"
    folder.mkdir()
    generator = random.Random(0)
    words = [f"w{chr(97 + index // 26)}{chr(97 + index % 26)}" for index in range(400)]
    for name, count in (("train", BANKING77_TRAIN), ("test", BANKING77_TEST)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for index, length in enumerate(banking77_lengths(count, 0)):
                writer.writerow([" ".join(generator.choices(words, k=int(length) - 2)), f"label{index % 77}"])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False], ids=["cached features", "encoder at every step"])
def test_an_epoch_of_banking77_compiles_once_a_grid_cell(
    run: Run, backend: Any, banking77_sized: Path, cached: bool
) -> None:
    seen: list[TrainResult] = []
    stores: list[Any] = []
    real = start.build_training

    def keep(job: Any, *args: Any) -> Any:
        stores.extend((job.train_tokens, job.test_tokens))
        return real(job, *args)

    batch, evaluation, limit = 64, 256, 128
    job = {"dataset_id": str(banking77_sized), "num_epochs": 1, "batch_size": batch, "eval_batch_size": evaluation}
    job |= {"max_length": limit, "feature_cache": cached, "warmup_ratio": 0.1, "steps_freq": 50}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "build_training", keep)
        compiles = count_compiles(backend, lambda: seen.append(run(**job)))
    assert seen[0].status == "completed"
    train_lengths, test_lengths = (np.asarray(store.lengths) for store in stores)
    # A word that the tokenizer cuts in two makes a text a little longer; the mix of lengths is Banking77's.
    assert abs(train_lengths.mean() / banking77_lengths(BANKING77_TRAIN, 0).mean() - 1) < 0.2

    if cached:
        # The encoder's cells, and two of the head: training's batch and evaluation's.
        grid = backend.static_shapes
        groups = [grid_groups(lengths, grid, "bucketed", limit) for lengths in (train_lengths, test_lengths)]
        cells = len({length for part in groups for _, length in part}) + 2
    else:
        order = epoch_order(len(train_lengths), 23, 0)
        cells = len(batch_lengths(train_lengths[order], batch, limit)) + len(
            batch_lengths(test_lengths, evaluation, limit)
        )
    print(f"compilations {compiles}, grid cells in use {cells}")
    assert 0 < compiles <= cells
    assert cells <= 2 * len(BUCKETS)


def batch_lengths(lengths: np.ndarray, rows: int, limit: int) -> set[int]:
    """The lengths that batches of `rows` neighbouring texts are padded to."""
    return {bucket_length(int(lengths[i : i + rows].max()), limit) for i in range(0, len(lengths), rows)}


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(run: Run) -> None:
    check_resume(run)


def test_a_whole_models_resume_is_bit_for_bit_too(run: Run) -> None:
    job = {"freeze_encoder": False, "learning_rate": 1e-4, "num_epochs": 1, "steps_freq": 1}
    straight = run(run_name="straight", **job)
    again = run(resume=run(run_name="cut", stop_at_step=5, **job).run, **job)
    assert losses(again) == losses(straight)


def test_a_checkpoint_of_another_backend_is_named(run: Run) -> None:
    first = run(backend="cpu", layout="bucketed", stop_at_step=3)
    with pytest.raises(UserError, match="no generator"):
        run(resume=first.run, layout="bucketed")


def test_a_run_predicts_and_its_model_runs_on_the_cpu_backend_alike(run: Run) -> None:
    trained = run()
    texts = ["lost card", "mortgage interest rate of my loan", "reset the password"]
    here = load_predictor(trained.run).predict(texts)
    there = load_predictor(trained.run, backend="cpu").predict(texts)
    assert [item.label for item in here] == [item.label for item in there]
    assert [item.probability for item in here] == pytest.approx([item.probability for item in there], rel=1e-4)


def test_gradient_checkpointing_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gradient_checkpointing can't run on the xla backend") as caught:
        run(freeze_encoder=False, gradient_checkpointing=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_packed_batches_are_refused_and_auto_means_bucketed(run: Run) -> None:
    with pytest.raises(UserError, match=r"layout 'packed' can't run on the xla backend.*padded, bucketed"):
        run(layout="packed")
    assert "bucketed layout" in (run(max_steps=1).run.path / "train.log").read_text()
