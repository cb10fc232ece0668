"""The loop on a device that wants few shapes: the host, made to want them. Losses stay those of the free device."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.features import compute as features
from isotrain.albert_core.features.compute import grid_groups
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.tokens.order import BUCKETS, BatchStream, bucket_length
from isotrain.backends import ShapeGrid, Traits
from isotrain.backends.cpu import CpuBackend
from isotrain.kernels import plugins
from support.small_job import losses
from support.small_tasks import write_scores, write_topics

Run = Callable[..., TrainResult]

GRID = ShapeGrid(64, (12, 24, 32))


class StaticBackend(CpuBackend):
    """A host that takes batches of `GRID` alone."""

    name = "static"
    traits = Traits(layouts=("padded", "bucketed"))

    @property
    def static_shapes(self) -> ShapeGrid | None:
        return GRID

    def head_step(self, parameters: Any, optimizer: Any) -> None:
        """None: this device has no fused step."""


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The backend `static`, installed; and the shape of every token batch made while it is."""
    entry = EntryPoint("static", "somewhere:StaticBackend", "isotrain.backends")
    monkeypatch.setattr(plugins, "entry_points", lambda **_: [entry])
    monkeypatch.setattr(EntryPoint, "load", lambda _: StaticBackend)
    seen: list[tuple[int, ...]] = []
    make = features.token_batch

    def recording(*args: Any) -> Any:
        batch = make(*args)
        seen.append(tuple(batch.input_ids.shape))
        return batch

    monkeypatch.setattr(features, "token_batch", recording)
    return seen


@pytest.mark.parametrize(
    ("job", "rows"),
    [
        ({}, {64 // 12, 64 // 24, 64 // 32}),
        ({"layout": "padded"}, {2}),
        ({"feature_cache": False}, {8, 256}),
        ({"feature_cache": False, "gradient_accumulation_steps": 3, "eval_batch_size": 7}, {8, 7}),
        (
            {
                "feature_cache": False,
                "gradient_accumulation_steps": 3,
                "class_weights": [3, 1, 0.5, 1, 2, 1],
                "label_smoothing_factor": 0.1,
                "eval_batch_size": 7,
            },
            {8, 7},
        ),
        ({"freeze_encoder": False, "learning_rate": 1e-3, "gradient_accumulation_steps": 4}, {8, 256}),
    ],
)
def test_losses_are_the_free_devices_on_grid_shapes_alone(
    run: Run, shapes: list[tuple[int, ...]], job: dict[str, Any], rows: set[int]
) -> None:
    result = run(backend="static", steps_freq=1, **job)
    assert {shape[0] for shape in shapes} <= rows
    assert {shape[1] for shape in shapes} <= set(GRID.lengths or ())
    free = run(backend="cpu", steps_freq=1, **({"layout": "bucketed"} | job))
    for (step, loss), (same_step, want) in zip(losses(result), losses(free), strict=True):
        assert step == same_step
        assert loss == pytest.approx(want, rel=1e-5)
    for key, value in free.metrics.items():
        assert result.metrics[key] == pytest.approx(value, rel=1e-5)


def test_questions_are_read_there_as_elsewhere(
    run: Run, shapes: list[tuple[int, ...]], reading: dict[str, Any]
) -> None:
    keys = reading | {"max_length": 32, "doc_stride": 8, "steps_freq": 1, "num_epochs": 1, "eval_batch_size": 7}
    result = run(backend="static", **keys)
    assert {shape[0] for shape in shapes} == {4, 7}
    assert {shape[1] for shape in shapes} <= set(GRID.lengths or ())
    free = run(backend="cpu", **keys)
    np.testing.assert_allclose(losses(result), losses(free), rtol=1e-5)
    assert result.metrics == pytest.approx(free.metrics, rel=1e-5)
    there = (result.run.path / "predictions.json").read_text()
    assert there == (free.run.path / "predictions.json").read_text()


@pytest.mark.parametrize("freeze_encoder", [True, False])
@pytest.mark.parametrize("task", ["multi_label_classification", "regression"])
def test_padding_rows_of_numbers_count_nowhere(
    run: Run, shapes: list[tuple[int, ...]], tmp_path: Path, task: str, freeze_encoder: bool
) -> None:
    write = write_topics if task == "multi_label_classification" else write_scores
    keys = {
        "task": task,
        "dataset_id": str(write(tmp_path / "data", train=45, test=9)),
        "freeze_encoder": freeze_encoder,
    }
    keys |= {"learning_rate": 1e-3, "steps_freq": 1, "num_epochs": 1, "eval_batch_size": 7, "layout": "bucketed"}
    keys |= {"gradient_accumulation_steps": 2, "save_strategy": "no"}
    result, free = run(backend="static", **keys), run(backend="cpu", **keys)
    np.testing.assert_allclose(losses(result), losses(free), rtol=1e-5)
    assert result.metrics == pytest.approx(free.metrics, rel=1e-4)


def test_a_resume_and_a_prediction_work_there(run: Run, shapes: list[tuple[int, ...]]) -> None:
    job = {"backend": "static", "gradient_accumulation_steps": 3, "steps_freq": 1}
    straight = run(run_name="straight", **job)
    again = run(resume=run(run_name="cut", stop_at_step=4, **job).run, **job)
    assert losses(again) == losses(straight)
    texts = ["lost card", "reset password app", "fee"]
    here, there = (load_predictor(again.run, backend=name).predict(texts) for name in ("static", "cpu"))
    assert [item.probability for item in here] == pytest.approx([item.probability for item in there], rel=1e-5)


@pytest.mark.parametrize("freeze_encoder", [True, False])
def test_packed_asked_for_is_refused_and_auto_is_bucketed(
    run: Run, shapes: list[tuple[int, ...]], freeze_encoder: bool
) -> None:
    job = {"backend": "static", "freeze_encoder": freeze_encoder, "max_steps": 1}
    with pytest.raises(UserError, match="layout 'packed' can't run on the static backend") as caught:
        run(layout="packed", **job)
    assert "\n" not in str(caught.value)
    assert "bucketed layout" in (run(**job).run.path / "train.log").read_text()


def test_the_logged_accuracy_counts_real_texts_alone(run: Run, shapes: list[tuple[int, ...]]) -> None:
    from support.small_job import metrics

    result = run(backend="static", num_epochs=12, steps_freq=12)
    shares = [item["train/accuracy"] for item in metrics(result) if "train/accuracy" in item]
    assert len(shares) == 12
    # 90 texts an epoch: a filler row that counted would make it no multiple of 1/90, or more than 1.
    assert all(abs(share * 90 - round(share * 90)) < 1e-6 for share in shares)
    assert shares[-1] > shares[0]


@pytest.mark.parametrize("layout", ["bucketed", "padded"])
@pytest.mark.parametrize("tokens", [64, 1000, 100_000])
def test_groups_hold_every_text_once_and_fit_their_cell(layout: str, tokens: int) -> None:
    lengths = np.random.default_rng(0).integers(2, 90, size=777)
    grid = ShapeGrid(tokens)
    groups = list(grid_groups(lengths, grid, layout, 96))
    assert sorted(np.concatenate([indices for indices, _ in groups]).tolist()) == list(range(777))
    for indices, length in groups:
        assert 0 < len(indices) <= grid.rows(length)
        assert lengths[indices].max() <= length
        assert length == 96 if layout == "padded" else length in BUCKETS
    computed = sum(grid.rows(length) * length for _, length in groups)
    filled_up = sum(length * len(indices) for indices, length in groups)
    assert computed - filled_up < len({length for _, length in groups}) * tokens


def test_a_text_at_max_length_has_a_cell() -> None:
    ((indices, length),) = grid_groups(np.array([100]), ShapeGrid(1000), "bucketed", 100)
    assert (indices.tolist(), length) == ([0], 100)
    assert bucket_length(100, 100, (32, 64)) == 100


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 31])
def test_whole_windows_have_equally_many_micro_batches(samples: int) -> None:
    free = BatchStream(samples, 4, 2, 0)
    whole = BatchStream(samples, 4, 2, 0, whole_windows=True)
    pairs = list(zip(free.windows(), whole.windows(), strict=True))
    for ours, theirs in pairs:
        assert len(theirs.micro_batches) == 2
        assert theirs.num_samples == ours.num_samples
        assert theirs.micro_batches[: len(ours.micro_batches)] == ours.micro_batches
        assert all(start == stop for start, stop in theirs.micro_batches[len(ours.micro_batches) :])
    assert (free.epoch, free.position) == (whole.epoch, whole.position) == (1, 0)


def test_an_encoder_moved_is_the_same_encoder() -> None:
    from isotrain.albert_core.model.encoder import load_encoder
    from isotrain.kernels.packed import PackedBatch, PortableEncoder

    encoder = PortableEncoder(load_encoder("random:tiny").weights)
    moved = encoder.to(torch.device("cpu"))
    batch = PackedBatch.from_lists([[2, 5, 9], [2, 7]])
    assert torch.equal(moved(batch), encoder(batch))
    elsewhere = encoder.to(torch.device("meta"))
    assert {tensor.device.type for layer in elsewhere._layers for tensor in layer.ffn.keywords.values()} == {"meta"}
    assert len({id(layer) for layer in elsewhere._layers}) == 1
