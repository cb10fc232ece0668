"""The heads on [CLS]: transformers' own with the checkpoint's pooler, and dropout before the last layer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.load import ResolvedConfig, load_config
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.train import TrainResult, train
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.albert_core.model.head import PoolerHead, sequence_head
from safetensors.torch import load_file, save_file
from support.small_job import losses
from support.tiny_models import write_models
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

Run = Callable[..., TrainResult]
Configure = Callable[..., ResolvedConfig]

POOLED = {"head": "pooler_linear", "head_dropout": 0.2}
WHOLE = {"freeze_encoder": False, "learning_rate": 1e-3}
JOBS = {"mlp": {"head_dropout": 0.2}, "pooler": POOLED, "whole mlp": {"head_dropout": 0.2} | WHOLE,
        "whole pooler": POOLED | WHOLE, "streamed pooler": POOLED | {"feature_cache": False}}  # fmt: skip


@pytest.fixture(scope="module")
def pooled_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("pooled"))


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(result.run.model / "model.safetensors")


@pytest.mark.parametrize("kind", ["albert", "bert"])
def test_the_pooler_is_the_checkpoints(pooled_models: dict[str, Path], kind: str) -> None:
    encoder = load_encoder(str(pooled_models[kind]))
    stored = AutoModel.from_pretrained(pooled_models[kind]).pooler
    assert encoder.pooler is not None
    assert encoder.module().pooler is None
    for ours, theirs in zip(encoder.pooler.parameters(), stored.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_begins_with_the_checkpoints_pooler(run: Run, pooled_models: dict[str, Path]) -> None:
    """And says so; a rate of nothing leaves the weights as they were."""
    pooler = AutoModel.from_pretrained(pooled_models["bert"]).pooler.dense
    still = {"learning_rate": 1e-30, "max_steps": 1}
    result = run(model_name=str(pooled_models["bert"]), **POOLED, **still)
    assert torch.equal(weights(result)["pooler.weight"], pooler.weight)
    assert "begins with the pretrained pooler of" in (result.run.path / "train.log").read_text()
    drawn = run(**POOLED, **still)
    assert torch.equal(weights(drawn)["pooler.weight"], PoolerHead(64, 6, 23).pooler.weight)
    assert "begins with a random pooler" in (drawn.run.path / "train.log").read_text()


def test_a_resume_says_nothing_of_a_pooler_that_its_checkpoint_replaces(
    run: Run, pooled_models: dict[str, Path]
) -> None:
    """A run's own copy of the encoder has none."""
    first = run(model_name=str(pooled_models["bert"]), **POOLED, save_strategy="step", steps_freq=1, stop_at_step=1)
    moved = [f"model_name={first.run.encoder}", f"tokenizer_name={first.run.tokenizer}"]
    own = load_config(first.run.config, [*moved, "stop_at_step=null", "max_steps=2"])
    assert train(own, resume=first.run).status == "completed"
    said = (first.run.path / "train.log").read_text()
    assert said.count("head: pooler_linear begins with") == 1


def test_a_checkpoint_without_a_pooler_loads_and_leaves_dropouts_generator_alone(
    pooled_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(pooled_models["bert"], tmp_path / "bert")
    stored = load_file(folder / "model.safetensors")
    lacking = {name: tensor for name, tensor in stored.items() if "pooler" not in name}
    assert len(lacking) == len(stored) - 2
    save_file(lacking, folder / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    encoder = load_encoder(str(folder))
    assert torch.equal(torch.rand(3), expected)
    assert encoder.pooler is None
    assert encoder.fingerprint == load_encoder(str(pooled_models["bert"])).fingerprint


def test_a_pooler_with_nan_is_refused(run: Run, pooled_models: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(pooled_models["albert"], tmp_path / "albert")
    stored = load_file(folder / "model.safetensors")
    stored["pooler.weight"][0, 0] = float("nan")
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="NaN or inf in its pooler"):
        run(model_name=str(folder), **POOLED)
    assert run(model_name=str(folder), max_steps=1).status == "completed"


@pytest.mark.parametrize("kind", ["albert", "bert"])
@pytest.mark.parametrize("frozen", [True, False])
def test_predictions_are_those_of_transformers_own_model(
    run: Run, pooled_models: dict[str, Path], kind: str, frozen: bool
) -> None:
    """Every trained weight in AutoModelForSequenceClassification: the same probabilities."""
    job = {} if frozen else WHOLE
    result = run(model_name=str(pooled_models[kind]), **POOLED, **job)
    trained, folder = weights(result), pooled_models[kind]
    config = AutoConfig.from_pretrained(folder, num_labels=6)
    model = AutoModelForSequenceClassification.from_pretrained(folder, config=config).eval()
    encoder = {name.removeprefix("encoder."): part for name, part in trained.items() if name.startswith("encoder.")}
    assert bool(encoder) is not frozen
    model.base_model.load_state_dict(encoder, strict=False)
    head = {name.removeprefix("head."): part for name, part in trained.items() if not name.startswith("encoder.")}
    pooler = getattr(model.base_model.pooler, "dense", model.base_model.pooler)
    pooler.load_state_dict({"weight": head["pooler.weight"], "bias": head["pooler.bias"]})
    model.classifier.load_state_dict({"weight": head["output.weight"], "bias": head["output.bias"]})
    texts = ["card lost please", "the loan", "old river city was found"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    inputs = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=True)
    with torch.no_grad():
        best = torch.softmax(model(**inputs).logits.double(), -1).max(-1)
    for found, label, share in zip(load_predictor(result.run).predict(texts), *best[::-1], strict=True):
        assert found.label_id == int(label)
        assert found.probability == pytest.approx(float(share), abs=1e-5)


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_resume_draws_the_same_dropout(run: Run, job: dict[str, Any]) -> None:
    common = job | {"max_steps": 8, "steps_freq": 1}
    straight = run(run_name="straight", **common)
    cut = run(run_name="cut", stop_at_step=3, **common)
    again = run(resume=cut.run, **common)
    assert losses(again) == losses(straight)
    expected = weights(straight)
    assert all(torch.equal(weights(again)[name], part) for name, part in expected.items())
    assert losses(run(run_name="dry", **common | {"head_dropout": 0.0})) != losses(straight)


@pytest.mark.parametrize("head", ["mlp", "pooler_linear"])
def test_dropout_scales_what_it_keeps_and_stops_in_evaluation(configure: Configure, head: str) -> None:
    model = sequence_head(16, 4, configure(head=head, head_dropout=0.25, mlp_hidden_size=400).config)
    seen: list[torch.Tensor] = []
    model.output.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    features = torch.randn(200, 16)
    model(features)
    model.eval()(features)
    drawn, whole = seen
    kept = drawn != 0
    assert 0.72 < float(kept.float().mean()) < 0.78
    torch.testing.assert_close(drawn[kept], whole[kept] / 0.75)


@pytest.mark.parametrize(
    ("keys", "reason"), [({"head": "pooler_linear"}, "head\n"), ({"head_dropout": 0.1}, "head_dropout\n")]
)
def test_the_fused_step_is_left_to_autograd_and_the_log_says_why(
    run: Run, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], reason: str
) -> None:
    """The parameters of the heads have the same shapes where both are as wide: nothing else would tell."""
    monkeypatch.setattr(
        "isotrain.backends.cpu.CpuBackend.head_step", lambda *_: pytest.fail("the fused step computes another head")
    )
    result = run(max_steps=2, **keys)
    assert f"no fused step computes {reason}" in (result.run.path / "train.log").read_text()
    assert "no fused step" not in (run(max_steps=2, fused_head=False).run.path / "train.log").read_text()


def test_another_head_is_refused_at_a_resume_and_at_a_prediction(run: Run) -> None:
    cut = run(stop_at_step=3, run_name="cut", **POOLED)
    with pytest.raises(UserError, match=r"head is .*pooler_linear.* there"):
        run(resume=cut.run, head="mlp")
    assert run(resume=cut.run, **POOLED | {"head_dropout": 0.0}).status == "completed"
    log = (cut.run.path / "train.log").read_text()
    assert "head_dropout: 0.2 -> 0.0" in log
    plain = run(max_steps=1, run_name="plain")
    text = plain.run.config.read_text()
    assert "head: mlp\n" in text
    plain.run.config.write_text(text.replace("head: mlp\n", "head: pooler_linear\n"))
    with pytest.raises(UserError):
        load_predictor(plain.run)


@pytest.mark.parametrize("keys", [{"head": "pooler_linear"}, {"head_dropout": 0.1}])
def test_questions_have_a_head_of_their_own(
    configure: Configure, reading: dict[str, Any], keys: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="head and head_dropout are for a head on"):
        train(configure(**reading, **keys))


def test_the_first_weights_are_transformers_distribution() -> None:
    """The standard deviation of initializer_range, biases of zero; the same bits for the same seed."""
    head, again, other = PoolerHead(256, 100, 3), PoolerHead(256, 100, 3), PoolerHead(256, 100, 4)
    for layer in (head.pooler, head.output):
        assert isinstance(layer, nn.Linear)
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
        assert not layer.bias.any()
    assert torch.equal(head.output.weight, again.output.weight)
    assert not torch.equal(head.output.weight, other.output.weight)
