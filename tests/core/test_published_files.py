"""The Banking77 experiment's configuration files as they were published over time, written anew from their keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from isotrain import UserError
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.train import TrainResult, train
from safetensors.torch import load_file

Run = Callable[..., TrainResult]

# The 41 keys of every version, with the published values.
PUBLISHED: dict[str, Any] = {
    "dataset_id": "banking77", "model_name": "albert/albert-base-v2", "max_length": 128, "num_labels": 77,
    "mlp_hidden_size": 256, "dtype": "torch.bfloat16", "learning_rate": 1e-3, "weight_decay": 0.01, "batch_size": 8,
    "gradient_accumulation_steps": 1, "gradient_checkpointing": False, "num_epochs": 5, "optim": "adamw_torch",
    "log_level": "INFO", "use_wandb": True, "wandb_project": "albert-finetuning", "wandb_run_name": "tt-albert-test",
    "wandb_tags": ["test"], "wandb_watch_mode": "all", "wandb_log_freq": 1000, "model_to_wandb": False,
    "steps_freq": 10, "epoch_freq": 1, "resume_from_checkpoint": False, "resume_option": "last", "checkpoint_path": "",
    "checkpoint_metric": "eval/loss", "checkpoint_metric_mode": "min", "keep_last_n": 3, "keep_best_n": 1,
    "save_strategy": "epoch", "project_dir": "blacksmith/experiments/torch/albert", "save_optim": False,
    "storage_backend": "local", "sync_to_storage": False, "load_from_storage": False, "remote_path": "", "seed": 23,
    "deterministic": False, "framework": "pytorch", "use_tt": True,
}  # fmt: skip
MESH = {"mesh_shape": None, "mesh_axis_names": None}
VERSIONS: dict[str, dict[str, Any]] = {
    "the first": {"dataset_id": "mteb/banking77"},
    "a strategy": {"training_type": "lora", "parallelism_strategy": "single"},
    "a mesh": {"training_type": "lora", **MESH},
    "another name": {"training_model_type": "lora", "max_length": 64, "val_steps_freq": 10, **MESH},
    "the method's name": {"training_model_type": "adapters", "val_steps_freq": 25, **MESH},
    "all at once": {"training_type": "lora", "training_model_type": "lora", "parallelism_strategy": "single", **MESH},
    "a mesh of one": {"training_type": "adapters", "mesh_shape": [1, 1], "mesh_axis_names": ["data", "model"]},
}
OVERRIDDEN = ("dataset_id=embedded:intents?train=80&test=77", "model_name=random:tiny")


def write(folder: Path, keys: dict[str, Any]) -> Path:
    file = folder / "albert_banking77.yaml"
    file.write_text(yaml.safe_dump(PUBLISHED | keys, sort_keys=False))
    return file


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files name a folder of runs relative to where the command runs, and W&B."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


@pytest.mark.parametrize("version", VERSIONS)
def test_a_published_file_trains_with_other_data_and_another_model(elsewhere: Path, version: str) -> None:
    keys = VERSIONS[version]
    result = train(load_config(write(elsewhere, keys), OVERRIDDEN))
    assert (result.status, result.total_steps) == ("completed", 5 * 10)
    assert (elsewhere / result.run.path).parent == elsewhere / PUBLISHED["project_dir"]
    assert json.loads(result.run.summary.read_text())["backend"] == "tt-emulated"
    trained = load_file(result.run.model / "model.safetensors")
    assert {name.partition(".")[0] for name in trained} == {"hidden", "output"}
    said = [line for line in (result.run.path / "train.log").read_text().splitlines() if "lora.rank" in line]
    named = [name for name in ("training_type", "training_model_type") if keys.get(name) == "lora"]
    assert len(said) == (1 if named else 0)
    for line in said:
        assert f"{' and '.join(named)}: lora" in line
        assert "trains the head alone" in line


@pytest.mark.parametrize("name", ["training_type", "training_model_type"])
def test_what_a_training_type_asks_for_is_done(tmp_path: Path, run: Run, name: str) -> None:
    file = write(tmp_path, {name: "full"})
    resolved = load_config(file)
    assert not resolved.config.freeze_encoder
    line = file.read_text().splitlines().index(f"{name}: full") + 1
    assert resolved.sources["freeze_encoder"] == f"{file.name}:{line}"
    again = tmp_path / "again.yaml"
    again.write_text(resolved.to_yaml())
    assert load_config(again).config == resolved.config
    assert not load_config(write(tmp_path, {name: "lora"}), ["lora.rank=4"]).config.freeze_encoder
    assert load_config(write(tmp_path, {name: "lora"})).config.freeze_encoder
    trained = load_file(run(**{name: "full"}, max_steps=1).run.model / "model.safetensors")
    assert {key.partition(".")[0] for key in trained} == {"encoder", "head"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"training_type": "prompt"}, ["training_type: 'prompt'", "'lora', 'adapters' or 'full'"]),
        ({"training_model_type": "albert"}, ["training_model_type: 'albert'", "'lora', 'adapters' or 'full'"]),
        ({"training_type": "adapters", "freeze_encoder": False}, ["training_type: adapters contradicts"]),
        ({"training_type": "full", "freeze_encoder": True}, ["training_type: full contradicts freeze_encoder: true"]),
        ({"training_type": "full", "lora": {"rank": 4}}, ["contradicts", "lora.rank: 4"]),
        ({"training_type": "lora", "freeze_encoder": False}, ["training_type: lora contradicts", "lora.rank: 0"]),
        ({"training_type": "full", "training_model_type": "adapters"}, ["training_model_type: adapters contradicts"]),
        ({"parallelism_strategy": "data_parallel"}, ["parallelism_strategy: 'data_parallel'", "'single'"]),
        ({"parallelism_strategy": None}, ["parallelism_strategy"]),
        ({"mesh_shape": [8, 1], "mesh_axis_names": ["data", "model"]}, ["mesh_shape [8, 1]", "torchrun"]),
        ({"mesh_shape": [0]}, ["mesh_shape [0]"]),
        ({"mesh_axis_names": ["data"]}, ["mesh_axis_names ['data']", "null"]),
        ({"mlp_hidden_dim": 256}, ["'mlp_hidden_dim'", "did you mean 'mlp_hidden_size'?"]),
        ({"experimental_weight_dtype": "bfp_bf8"}, ["did you mean 'tt.weight_dtype'?"]),
        ({"adapter_bottleneck_dim": 64}, ["the nearest is 'project_dir'; `isotrain config --keys`"]),
        # Like no key at all.
        ({"zzz": 64}, ["the nearest is 'batch_size'; `isotrain config --keys`"]),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path: Path, keys: dict[str, Any], said: list[str]) -> None:
    file = write(tmp_path, keys)
    with pytest.raises(UserError) as caught:
        load_config(file)
    message = str(caught.value)
    assert "\n" not in message
    assert file.name in message
    for words in said:
        assert words in message
