"""Whole models on packed batches: transformers' own modules judge them, one sequence or one padded batch at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from isotrain.albert_core.config.schema import TrainConfig
from isotrain.albert_core.inference.export import export_run
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.job import layout_on
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.model.packed_module import packed_states, take_packed
from isotrain.albert_core.model.whole import checkpoint_activations
from isotrain.backends import backend_traits, get_backend
from isotrain.kernels.packed import PackedBatch
from safetensors.torch import load_file
from support.small_job import losses
from support.small_pairs import write_pairs
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

Run = Callable[..., TrainResult]

SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
# One token alone, equal lengths side by side and apart, and the longest in the middle.
LENGTHS = (5, 1, 12, 5, 5, 30, 12, 2)


def build(kind: str, dropout: float = 0.0, attention_dropout: float = 0.0) -> Any:
    """A float64 model of three layers, of which ALBERT's are one."""
    config, model = (AlbertConfig, AlbertModel) if kind == "albert" else (BertConfig, BertModel)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": attention_dropout}
    torch.manual_seed(3)
    made = config(num_hidden_layers=3, max_position_embeddings=40, initializer_range=0.3, **SIZES, **rates)
    return model(made, add_pooling_layer=False).double().train()


def batch_of(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> PackedBatch:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, 60, length).tolist() for length in lengths]
    return PackedBatch.from_lists(ids, [[int(place > length // 2) for place in range(length)] for length in lengths])


def states_of(module: Any, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    return packed_states(module, batch, get_backend("cpu"))


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: part.grad for name, part in module.named_parameters() if part.grad is not None}


@pytest.mark.parametrize("kind", ["albert", "bert"])
@pytest.mark.parametrize("types", [True, False])
def test_states_and_gradients_are_those_of_the_padded_module(kind: str, types: bool) -> None:
    plain = build(kind)
    packed = copy.deepcopy(plain)
    take_packed(packed)
    batch = batch_of()
    if not types:
        batch = PackedBatch(batch.input_ids, batch.cu_seqlens, batch.position_ids)
    padded = batch.to_padded()
    wanted = plain(
        input_ids=padded.input_ids, attention_mask=padded.attention_mask, token_type_ids=padded.token_type_ids
    ).last_hidden_state
    got, mask = states_of(packed, batch)
    assert torch.equal(mask, padded.attention_mask)
    real = mask.bool()
    torch.testing.assert_close(got[real], wanted[real], rtol=0, atol=1e-12)
    assert not got[~real].any()
    # Something that weighs every state in its own way.
    weights = (
        torch.randn(wanted.shape, dtype=wanted.dtype, generator=torch.Generator().manual_seed(1)) * real[..., None]
    )
    (got * weights).sum().backward()
    (wanted * weights).sum().backward()
    expected = gradients(plain)
    assert expected.keys() == gradients(packed).keys()
    for name, gradient in gradients(packed).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-11, msg=name)


def test_the_modules_own_calls_stay_what_they_were() -> None:
    """Parity, exports and frozen encoders run the same module on padded batches."""
    plain = build("albert").eval()
    fit = copy.deepcopy(plain)
    take_packed(fit)
    take_packed(fit)
    padded = batch_of().to_padded(32)
    for inputs in ({"attention_mask": padded.attention_mask}, {}):
        one, two = (module(input_ids=padded.input_ids, **inputs).last_hidden_state for module in (plain, fit))
        assert torch.equal(one, two)
    assert plain.config._attn_implementation == "sdpa", "another model of the process is none of its business"


@pytest.mark.parametrize("kind", ["albert", "bert"])
def test_checkpointed_layers_see_the_same_batch_and_draw_the_same_dropout(kind: str) -> None:
    found = []
    for checkpointing in (False, True):
        module = build(kind, dropout=0.2, attention_dropout=0.3)
        take_packed(module)
        if checkpointing:
            checkpoint_activations(module)
        torch.manual_seed(11)
        first, _ = states_of(module, batch_of())
        # Another batch between forward and backward: the layers that are computed again must not take it for theirs.
        states_of(module, batch_of((7, 3), seed=1))
        first.square().sum().backward()
        found.append((first.detach(), gradients(module)))
    (plain, expected), (checkpointed, got) = found
    assert torch.equal(checkpointed, plain)
    assert all(torch.equal(got[name], gradient) for name, gradient in expected.items())


def test_threads_that_share_a_module_do_not_mix_their_batches() -> None:
    module = build("bert").eval()
    take_packed(module)
    batches = [batch_of(tuple(np.random.default_rng(seed).integers(1, 40, 6).tolist()), seed) for seed in range(24)]
    with torch.no_grad():
        expected = [states_of(module, batch)[0] for batch in batches]

        def again(batch: PackedBatch) -> torch.Tensor:
            with torch.no_grad():
                return states_of(module, batch)[0]

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(again, batches * 4))
    assert all(torch.equal(one, two) for one, two in zip(found, expected * 4, strict=True))


def test_attention_dropout_is_that_of_the_configuration() -> None:
    """Nothing else is dropped here, so what differs from call to call is dropout on the probabilities."""
    module = build("bert", attention_dropout=0.4)
    take_packed(module)
    batch = batch_of()
    one, two = (states_of(module, batch)[0] for _ in range(2))
    assert (one - two).abs().max() > 1e-2
    module.eval()
    exact = states_of(module, batch)[0]
    assert torch.equal(exact, states_of(module, batch)[0])
    assert (exact - one).abs().max() > 1e-2


CLASSES = {"freeze_encoder": False, "learning_rate": 1e-3, "steps_freq": 1, "threads": 1}


@pytest.mark.parametrize("job", ["classification", "pairs", "questions", "lora"])
def test_losses_are_those_of_bucketed_batches(run: Run, reading: dict[str, Any], tmp_path: Path, job: str) -> None:
    if job == "lora":
        pytest.importorskip("peft", reason="needs the extra lora: pip install -e '.[lora]'")
    keys: dict[str, Any] = {
        "classification": CLASSES,
        "pairs": CLASSES | {"dataset_id": str(write_pairs(tmp_path / "pairs")), "num_epochs": 3},
        "questions": reading | {"steps_freq": 1, "gradient_accumulation_steps": 1, "num_epochs": 3},
        "lora": CLASSES | {"lora": {"rank": 4}},
    }[job]
    keys = keys | {"learning_rate": 1e-4, "max_steps": 24}
    bucketed, packed = (run(run_name=layout, layout=layout, **keys) for layout in ("bucketed", "packed"))
    expected = np.array(losses(bucketed))
    assert len(expected) == 24
    assert np.ptp(expected[:, 1]) > 1e-3, "losses that never move would prove nothing"
    np.testing.assert_allclose(np.array(losses(packed)), expected, rtol=1e-6, atol=0)
    assert packed.metrics == pytest.approx(bucketed.metrics, rel=1e-5)
    assert "packed layout" in (packed.run.path / "train.log").read_text()


def test_the_layout_left_open_is_the_devices_own(run: Run) -> None:
    assert "packed layout" in (run(**CLASSES | {"max_steps": 1}).run.path / "train.log").read_text()


WHOLE = {"freeze_encoder": False}


@pytest.mark.parametrize(
    ("backend", "keys", "layout"),
    [
        ("cpu", WHOLE, "packed"),
        ("cpu", WHOLE | {"torch_compile": "default"}, "bucketed"),
        ("cpu", {}, "packed"),
        ("cpu", {"kernel": "transformers"}, "dynamic"),
        ("cuda", WHOLE, "dynamic"),
        ("cuda", {}, "packed"),
        ("mps", WHOLE, "dynamic"),
        ("hpu", WHOLE, "bucketed"),
        ("xla", WHOLE, "bucketed"),
        ("xla", {"kernel": "transformers"}, "bucketed"),
    ],
)
def test_batches_are_bucketed_only_where_shapes_are_compiled(backend: str, keys: dict[str, Any], layout: str) -> None:
    device: Any = SimpleNamespace(name=backend, traits=backend_traits(backend))
    assert layout_on(device, TrainConfig.model_validate(keys)) == layout


@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_resume_is_bit_exact_with_dropout(run: Run, dropping_model: Path, checkpointing: bool) -> None:
    common = CLASSES | {
        "layout": "packed",
        "model_name": str(dropping_model),
        "max_steps": 4,
        "learning_rate": 1e-4,
        "gradient_checkpointing": checkpointing,
    }
    straight = run(run_name="straight", **common)
    again = run(run_name="cut", resume=run(run_name="cut", stop_at_step=2, **common).run, **common)
    assert losses(again) == losses(straight)
    one, two = (load_file(result.run.model / "model.safetensors") for result in (straight, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_answers_to_new_questions_are_those_of_the_evaluation(run: Run, reading: dict[str, Any]) -> None:
    result = run(**reading | {"layout": "packed"})
    predictor = load_predictor(result.run)
    assert predictor.layout == "packed"
    evaluated = json.loads((result.run.path / "predictions.json").read_text())
    dataset = predictor.task.load(predictor.config)
    found = predictor.predict(dataset.test.questions, dataset.test.contexts)
    assert [item.text for item in found] == [evaluated[name] for name in dataset.test.ids]


def test_an_export_of_such_a_run_is_a_plain_model(run: Run, tmp_path: Path) -> None:
    exported = export_run(run(layout="packed", **CLASSES).run, "safetensors", tmp_path / "out")
    assert "isotrain" not in (exported.folder / "config.json").read_text()
