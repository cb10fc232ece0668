"""Adapters: what is trained, what is frozen, and that both come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.load import ResolvedConfig, load_config
from isotrain.albert_core.config.lora import LoraOptions
from isotrain.albert_core.inference.export import export_run
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.train import TrainResult
from isotrain.albert_core.model.adapters import add_adapters, merged
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.albert_core.runs.checkpoint import read_checkpoint
from safetensors.torch import load_file
from support.small_job import losses

peft = pytest.importorskip("peft", reason="needs the extra lora: pip install -e '.[lora]'")

Run = Callable[..., TrainResult]

LORA = {
    "freeze_encoder": False,
    "lora": {"rank": 4, "targets": ["query", "value", "ffn"]},
    "learning_rate": 1e-2,
    "threads": 1,
}


def saved(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(result.run.model / "model.safetensors")


def test_only_adapters_and_head_are_trained_and_losses_fall(run: Run) -> None:
    result = run(**LORA)
    history = [loss for _, loss in losses(result)]
    assert history[-1] < 0.8 * history[0]
    (checkpoint, *_) = sorted(result.run.checkpoints.glob("step-*"))
    kept = read_checkpoint(checkpoint)
    assert kept.model
    assert all(".lora_" in name or name.startswith("head.") for name in kept.model)
    assert kept.optimizer is not None
    assert len(kept.optimizer["state"]) == len(kept.model)
    weights, start = saved(result), load_encoder("random:tiny", 23).module().state_dict()
    base = {name.replace(".base_layer", ""): tensor for name, tensor in weights.items() if ".lora_" not in name}
    for name, tensor in start.items():
        if tensor.is_floating_point():
            assert torch.equal(base[f"encoder.{name}"], tensor), name
    grown = [name for name in weights if ".lora_B." in name]
    assert len(grown) == 3
    assert all(bool(weights[name].any()) for name in grown)


def test_losses_are_those_of_peft_and_a_plain_loop(run: Run, configure: Callable[..., ResolvedConfig]) -> None:
    """The judge has peft's own model, its merge, and torch's optimizer; only the adapters' first weights are shared."""
    from isotrain.albert_core.loop.job import open_job
    from isotrain.albert_core.model.head import ClassificationHead
    from isotrain.albert_core.tokens.order import epoch_order

    config = configure(**LORA).config
    job = open_job(config)
    encoder = load_encoder("random:tiny", config.seed).module()
    model = peft.get_peft_model(encoder, peft.LoraConfig(r=4, lora_alpha=16, target_modules=["query", "value", "ffn"]))
    ours = dict(add_adapters(load_encoder("random:tiny", config.seed).module(), config.lora, 23).named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(ours[name.removeprefix("base_model.model.")])
    head = ClassificationHead(64, config.mlp_hidden_size, job.num_labels, config.seed)
    trained = [part for part in (*model.parameters(), *head.parameters()) if part.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
    store, expected = job.train_tokens, []
    order = epoch_order(store.num_texts, config.seed, 0)
    for start in range(0, 40, 8):
        rows = order[start : start + 8]
        texts = [torch.from_numpy(store.ids[store.offsets[i] : store.offsets[i + 1]].copy()).long() for i in rows]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        features = model(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        loss = torch.nn.functional.cross_entropy(head(features), torch.from_numpy(store.labels[rows].copy()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(float(loss.detach()))
    got = [loss for _, loss in losses(run(steps_freq=1, max_steps=5, **LORA))]
    assert got == pytest.approx(expected, abs=2e-5)


def test_resume_is_bit_exact(run: Run) -> None:
    common: dict[str, Any] = LORA | {"lora": {"rank": 2, "dropout": 0.3}}
    straight = run(run_name="straight", **common)
    first = run(run_name="cut", stop_at_step=5, **common)
    second = run(run_name="cut", resume=first.run, **common)
    assert losses(second) == losses(straight)
    one, two = saved(straight), saved(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("change", [{"rank": 2}, {"rank": 4, "alpha": 8.0}, {"rank": 0}])
def test_other_adapters_are_another_run(run: Run, change: dict[str, Any]) -> None:
    first = run(stop_at_step=3, **LORA)
    with pytest.raises(UserError, match="lora is"):
        run(resume=first.run, **LORA | {"lora": change})


def test_predictions_are_those_of_the_merged_export(run: Run, tmp_path: Path) -> None:
    result = run(**LORA)
    texts = ["lost my card", "fee for a transfer abroad"]
    expected = load_predictor(result.run).predict(texts)
    assert load_predictor(result.run, checkpoint="last").predict(texts) == expected
    folder = export_run(result.run, "safetensors", tmp_path / "out").folder
    assert load_file(folder / "model.safetensors").keys() == load_encoder("random:tiny").module().state_dict().keys()
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    model, head = load_predictor(result.run).model, load_file(folder / "head.safetensors")
    with torch.no_grad():
        features = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[:, 0]
        untrained = load_encoder("random:tiny", 23).module()(**inputs).last_hidden_state[:, 0]
        model.head.load_state_dict(head)
        best = torch.softmax(model.head(features).double(), -1).max(-1)
    assert (features - untrained).abs().max() > 1e-2, "adapters that do nothing would merge well too"
    assert best.values.tolist() == pytest.approx([item.probability for item in expected], abs=1e-5)


def test_adapters_start_as_nothing_and_share_the_encoders_weights() -> None:
    encoder = load_encoder("random:tiny").module()
    adapted = add_adapters(encoder, LoraOptions(rank=2), seed=0)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(adapted(input_ids=ids).last_hidden_state, encoder(input_ids=ids).last_hidden_state)
    assert all(parameter.requires_grad for name, parameter in adapted.named_parameters() if ".lora_" in name)
    words = "embeddings.word_embeddings.weight"
    assert adapted.get_parameter(words) is encoder.get_parameter(words)
    assert merged(adapted).state_dict().keys() == encoder.state_dict().keys()


def test_what_has_no_adapter_is_refused_by_name(run: Run, configure: Callable[..., ResolvedConfig]) -> None:
    with pytest.raises(UserError, match=r"'qkv', no linear layer .* there are dense, .*ffn, ffn_output, key, q"):
        run(run_name="wrong", **LORA | {"lora": {"rank": 2, "targets": ["query", "qkv"]}})
    assert not (Path(configure().config.project_dir) / "wrong").exists()
    with pytest.raises(UserError, match="set freeze_encoder: false"):
        configure(lora={"rank": 2})
    with pytest.raises(UserError, match=r"lora\.rank"):
        load_config(None, ["lora.rnak=2"])


def test_the_packaged_configuration_is_one() -> None:
    config = load_config("banking77_lora").config
    assert config.lora == LoraOptions(rank=8)
    assert not config.freeze_encoder


@pytest.mark.parametrize(("targets", "every"), [(("all-linear",), True), (("query",), False)])
def test_targets_are_one_name_or_all_linear_layers(targets: tuple[str, ...], every: bool) -> None:
    encoder = load_encoder("random:tiny", 23).module()
    linear = [name for name, layer in encoder.named_modules() if isinstance(layer, torch.nn.Linear)]
    adapted = add_adapters(encoder, LoraOptions(rank=2, targets=targets), seed=1)
    adapters = [name for name, _ in adapted.named_parameters() if ".lora_A." in name]
    assert len(adapters) == (len(linear) if every else sum(name.endswith(".query") for name in linear))
