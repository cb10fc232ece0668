"""Encoders by name: random architectures, local folders, Hub ids, and everything that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.load import ResolvedConfig
from isotrain.albert_core.features.source import frozen_encoder
from isotrain.albert_core.loop.job import open_job
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.albert_core.model.transformers_module import weights_from_module
from isotrain.backends import get_backend
from isotrain.kernels.packed import PackedBatch
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

TINY = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 4}


def save_albert(folder: Path, **overrides: object) -> Path:
    torch.manual_seed(0)
    AlbertModel(AlbertConfig(**(TINY | {"embedding_size": 8} | overrides))).save_pretrained(folder)
    return folder


def as_hub_cache(folder: Path, home: Path, name: str) -> None:
    """Lays a saved model out the way huggingface_hub caches a download of `name`."""
    root = home / f"models--{name.replace('/', '--')}"
    revision = "0" * 40
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(revision)
    (root / "snapshots").mkdir()
    folder.rename(root / "snapshots" / revision)


def test_random_weights_depend_on_the_seed_alone_and_say_so() -> None:
    torch.manual_seed(1)
    first = load_encoder("random:tiny", seed=3)
    torch.rand(5)
    again, other = load_encoder("random:tiny", seed=3), load_encoder("random:tiny", seed=4)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.random
    assert "random weights" in first.label


def test_random_weights_leave_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_encoder("random:tiny", seed=3)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("name", "hidden", "heads", "layers", "parameters"),
    [("albert-base-v2", 768, 12, 12, 11_092_992), ("albert-large-v2", 1024, 16, 24, 16_634_368)],
)
def test_random_architectures_are_the_published_ones(
    name: str, hidden: int, heads: int, layers: int, parameters: int
) -> None:
    """The published checkpoints have 11,683,584 and 17,683,968 parameters, hidden x (hidden + 1) of them poolers."""
    encoder = load_encoder(f"random:{name}")
    config = encoder.weights.config
    assert (config.hidden_size, config.num_heads, len(config.weights_of_layer)) == (hidden, heads, layers)
    assert (config.vocab_size, config.embedding_size, config.activation) == (30000, 128, "gelu_new")
    assert sum(tensor.numel() for _, tensor in encoder.weights.named_tensors()) == parameters


def test_an_albert_folder_loads_without_its_pooler(tmp_path: Path) -> None:
    encoder = load_encoder(str(save_albert(tmp_path / "model")))
    assert not encoder.random
    assert "random" not in encoder.label
    assert encoder.module().pooler is None
    stored = AlbertModel.from_pretrained(tmp_path / "model").state_dict()
    for name, tensor in encoder.module().state_dict().items():
        assert torch.equal(tensor, stored[name])


def test_a_hub_id_loads_through_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_hub_cache(save_albert(tmp_path / "model"), tmp_path / "hub", "someone/albert-mini")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    encoder = load_encoder("someone/albert-mini")
    assert encoder.label == "someone/albert-mini"
    assert encoder.config.hidden_size == 16


def test_a_real_bert_folder_loads(minilm_folder: Path) -> None:
    encoder = load_encoder(str(minilm_folder))
    assert encoder.weights.config.kind == "bert"
    assert encoder.weights.config.weights_of_layer == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("groups", [{"num_hidden_groups": 2}, {"inner_group_num": 2}])
def test_alberts_with_several_layers_map_each_layer(groups: dict[str, int]) -> None:
    torch.manual_seed(0)
    module = AlbertModel(AlbertConfig(**(TINY | {"embedding_size": 8} | groups)), add_pooling_layer=False).eval()
    weights = weights_from_module(module)
    backend = get_backend("cpu")
    encoder = backend.frozen_encoder(weights, backend.cast_policy("float32"))
    ids = [2, 7, 30, 11, 3]
    with torch.no_grad():
        wanted = module(input_ids=torch.tensor([ids])).last_hidden_state[0, 0]
    torch.testing.assert_close(encoder(PackedBatch.from_lists([ids]))[0], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", ["portable", "transformers"])
def test_bfloat16_rounds_the_weights_wherever_it_computes(kernel: str) -> None:
    encoder, backend = load_encoder("random:tiny"), get_backend("cpu")
    batch = PackedBatch.from_lists([[2, 8, 9, 3], [2, 5, 3]]).to_padded(8)
    exact = frozen_encoder(encoder, backend, backend.cast_policy("float32"), kernel)(batch)
    strict = frozen_encoder(encoder, backend, backend.cast_policy("bfloat16", strict=True), kernel)(batch)
    native = frozen_encoder(encoder, backend, backend.cast_policy("bfloat16"), kernel)(batch)
    for rounded in (strict, native):
        error = float((rounded - exact).norm() / exact.norm())
        assert 1e-4 < error < 0.1


def test_what_cannot_be_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="random:albert-base-v2"):
        load_encoder("random:bert-giant")
    with pytest.raises(UserError, match=r"config\.json"):
        load_encoder(str(tmp_path))
    with pytest.raises(UserError, match="local folder"):
        load_encoder("./no-such-folder")
    with pytest.raises(UserError, match=r"Hub id.*random:albert-base-v2"):
        load_encoder("nobody/no-such-model")
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="'gpt2' model; allowed are albert and bert"):
        load_encoder(str(tmp_path / "gpt"))


def test_a_folder_without_weights_or_with_some_missing_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_albert(tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    removed = next(name for name in tensors if "ffn.weight" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != removed}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 .*ffn\.weight"):
        load_encoder(str(folder))
    file.unlink()
    with pytest.raises(UserError, match="can't be loaded"):
        load_encoder(str(folder))


def test_nan_weights_are_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = save_albert(tmp_path / "model") / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "ffn.bias" in name)
    tensors[name][3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"NaN or inf in .*ffn\.bias"):
        load_encoder(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"position_embedding_type": "relative_key"}, "'relative_key', which neither"),
        ({"is_decoder": True}, "a decoder .* sees itself alone"),
    ],
)
def test_attention_that_nothing_here_computes_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """At loading, before any kernel: transformers itself would take relative positions for absolute ones."""
    module = BertModel(BertConfig(**TINY), add_pooling_layer=False)
    module.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=said):
        load_encoder(str(tmp_path))
    for key, value in change.items():
        setattr(module.config, key, value)
    with pytest.raises(UserError, match=said):
        weights_from_module(module)


def test_a_max_length_beyond_the_models_positions_is_refused(configure: Callable[..., ResolvedConfig]) -> None:
    with pytest.raises(UserError, match="max_length 513 exceeds the positions that random:tiny has; set at most 512"):
        open_job(configure(max_length=513).config)
