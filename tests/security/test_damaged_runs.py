"""A finished run is checked byte by byte before anything is made of it: predict, export, tt-formats and a resume."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.inference.export import export_run
from isotrain.albert_core.inference.predict import load_predictor
from isotrain.albert_core.loop.train import train
from isotrain.albert_core.runs.checkpoint import read_checkpoint, write_checkpoint
from isotrain.albert_core.runs.files import json_digest
from isotrain.albert_core.runs.folder import RunFolder, open_run
from isotrain.albert_core.runs.manifest import vouch
from isotrain.albert_core.runs.weight_files import weight_tensors
from safetensors import safe_open
from safetensors.torch import save_file
from support.command import Invoke, one_line_error
from support.small_job import settings, write_dataset
from transformers import AlbertConfig, AlbertModel

CHECKED = [
    "config.yaml",
    "run.json",
    "labels.json",
    "inputs.json",
    "tokenizer/tokenizer.json",
    "tokenizer/isotrain_tokenizer.json",
    "encoder/config.json",
    "encoder/model.safetensors",
    "model/model.safetensors",
]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a small encoder with weights of its own, and so with a copy of it."""
    folder = tmp_path_factory.mktemp("finished")
    torch.manual_seed(5)
    config = AlbertConfig(
        vocab_size=600,
        embedding_size=8,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
        num_hidden_layers=2,
    )
    AlbertModel(config, add_pooling_layer=False).save_pretrained(folder / "model")
    data = write_dataset(folder / "data")
    from isotrain.albert_core.data.datasets import load_dataset
    from isotrain.albert_core.tokens.tokenizer import load_tokenizer

    texts = load_dataset(str(data)).train.texts
    load_tokenizer("embedded", "random:tiny", texts=texts, vocab_size=600).save(folder / "tokenizer")
    chosen = settings(data, folder, model_name=str(folder / "model"), tokenizer_name=str(folder / "tokenizer"))
    return train(load_config(None, [*chosen, "num_epochs=1", "run_name=run"])).run.path


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("part", ["labels", "tokenizer"])
def test_labels_or_a_tokenizer_replaced_together_with_the_manifest_are_refused(
    copy: Path, finished: Path, part: str, invoke: Invoke
) -> None:
    if part == "labels":
        (copy / "labels.json").write_text(json.dumps(json.loads((copy / "labels.json").read_text())[::-1]))
    else:
        file = copy / "tokenizer" / "tokenizer.json"
        file.write_text(file.read_text().replace('"[SEP]"', '"[SEPARATE]"'))
    vouch(copy)
    one_line_error(invoke("predict", str(copy), "a card"), f"another {part} than its weights were trained with")
    result = invoke("train", "--resume", str(copy), "--set", "num_epochs=2")
    one_line_error(result, f"another {part} than its weights were trained with", "copy the whole run folder again")
    vouch(finished)
    assert invoke("predict", str(finished), "a card")[0] == 0


@pytest.mark.parametrize("entry", [None, [], {"size": None, "sha256": "0"}, {"size": True, "sha256": 3}, {"size": "9"}])
def test_a_manifest_with_values_of_another_type_is_refused_in_words(copy: Path, entry: Any, invoke: Invoke) -> None:
    file = copy / "manifest.json"
    written = json.loads(file.read_text())
    written["files"]["labels.json"] = entry
    written["files_sha256"] = hashlib.sha256(json.dumps(written["files"], sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps(written))
    result = invoke("predict", str(copy), "a card")
    one_line_error(result, "the manifest says nothing usable of", "labels.json")
    assert "None" not in result[2]


@pytest.mark.parametrize("name", ["labels.json", "inputs.json", "run.json", "encoder/config.json", "manifest.json"])
@pytest.mark.parametrize("nested", ["[" * 5000, "[" * 200_000 + "]" * 200_000, '{"a":' * 3000 + "1" + "}" * 3000])
def test_deeply_nested_json_is_refused_in_our_words(copy: Path, name: str, nested: str, invoke: Invoke) -> None:
    (copy / name).write_text(nested)
    if name != "manifest.json":
        vouch(copy)
    commands = [["predict", str(copy), "a card"]]
    if name in ("labels.json", "inputs.json", "manifest.json"):
        # The others are written anew or not read by a resume.
        commands.append(["train", "--resume", str(copy), "--set", "num_epochs=2"])
    for command in commands:
        result = invoke(*command)
        one_line_error(result, name)
        assert "recursion" not in result[2]


def flip(path: Path) -> None:
    """Changes one bit in the middle, and nothing of its size."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)


def resume(run: RunFolder) -> None:
    train(load_config(run.config), resume=run)


def uses(tmp_path: Path) -> dict[str, Callable[[RunFolder], Any]]:
    return {
        "predict": load_predictor,
        "predict --checkpoint": lambda run: load_predictor(run, checkpoint="last"),
        "export": lambda run: export_run(run, "safetensors", tmp_path / "exported"),
        "resume": resume,
    }


def test_an_untouched_copy_serves_everything(copy: Path, tmp_path: Path) -> None:
    for use in uses(tmp_path).values():
        use(open_run(copy))


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_changed_or_missing_file_is_refused_by_name(
    copy: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(copy / name)
    for what, use in uses(tmp_path).items():
        if name == "config.yaml" and (what == "resume" or not (copy / name).exists()):
            continue
        if name.startswith("model/") and what == "predict --checkpoint" and damage is Path.unlink:
            continue
        with pytest.raises(UserError, match=Path(name).name.replace(".", r"\.") + "|no finished model") as caught:
            use(RunFolder(copy))
        assert "\n" not in str(caught.value), what
    assert not (tmp_path / "exported").exists()
    assert not list(copy.glob("*until-step*"))


def test_every_file_that_a_prediction_reads_is_in_the_manifest(copy: Path) -> None:
    described = json.loads((copy / "manifest.json").read_text())["files"]
    assert set(described) == set(CHECKED)
    for name in CHECKED:
        assert described[name]["size"] == (copy / name).stat().st_size


def test_another_runs_files_are_refused(copy: Path, tmp_path: Path) -> None:
    labels = json.loads((copy / "labels.json").read_text())
    (copy / "labels.json").write_text(json.dumps(labels[::-1], indent=2) + "\n")
    with pytest.raises(UserError, match=r"labels\.json is damaged"):
        load_predictor(open_run(copy))
    # Even where the manifest is made to fit: the weights are of other labels.
    with pytest.raises(UserError, match="another one than when it was written"):
        resume(open_run(copy))


def test_a_file_that_the_run_did_not_write_is_refused(copy: Path) -> None:
    (copy / "encoder" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_config\.json was not written by this run"):
        load_predictor(open_run(copy))


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_text("[" * 100_000)])
def test_the_manifest_itself_is_checked(copy: Path, damage: Callable[[Path], None]) -> None:
    damage(copy / "manifest.json")
    with pytest.raises(UserError, match=r"manifest\.json") as caught:
        load_predictor(open_run(copy))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_manifest_names_no_file_elsewhere(copy: Path, tmp_path: Path) -> None:
    for name in ("../secret", "/etc/hostname", "tokenizer/../../secret", "encoder//x"):
        from isotrain.albert_core.runs import manifest

        (copy / "manifest.json").write_text(
            json.dumps({"format": manifest.FORMAT, "files": {name: {}}, "files_sha256": json_digest({name: {}})})
        )
        with pytest.raises(UserError, match="names files that no run has"):
            load_predictor(open_run(copy))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_predict_nothing(copy: Path, tmp_path: Path, value: float) -> None:
    path = copy / "model" / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    next(iter(tensors.values())).view(-1)[0] = value
    save_file(tensors, path, metadata=header)
    vouch(copy, ["model/model.safetensors"])
    with pytest.raises(UserError, match="is NaN or inf"):
        load_predictor(open_run(copy))
    with pytest.raises(UserError, match="is NaN or inf"):
        export_run(open_run(copy), "safetensors", tmp_path / "exported")


def test_weight_files_of_a_run_and_of_a_checkpoint_are_checked(copy: Path) -> None:
    checkpoint = next((copy / "checkpoints").glob("step-*"))
    assert list(weight_tensors(copy))
    assert list(weight_tensors(checkpoint))
    flip(checkpoint / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        list(weight_tensors(checkpoint))
    flip(copy / "model" / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        list(weight_tensors(copy))


def test_an_interrupted_set_up_is_told_and_mended_by_a_resume(copy: Path) -> None:
    from isotrain.albert_core.runs.manifest import CHANGING, withdraw

    withdraw(copy, CHANGING)
    with pytest.raises(UserError, match=r"does not vouch for config\.yaml.*`isotrain train --resume"):
        load_predictor(open_run(copy))
    resume(open_run(copy))
    load_predictor(open_run(copy))


def test_a_run_without_a_manifest_gets_one_by_a_resume(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"has no manifest\.json.*isotrain train --resume"):
        load_predictor(open_run(copy))
    resume(open_run(copy))
    load_predictor(open_run(copy))


def test_a_configuration_is_changed_by_a_resume_and_not_by_hand(copy: Path, invoke: Invoke) -> None:
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("eval_batch_size: 256", "eval_batch_size: 128"))
    one_line_error(invoke("predict", str(copy), "lost card"), "config.yaml", "--set KEY=VALUE")
    code, _, err = invoke("train", "--resume", str(copy))
    assert code == 2
    assert "config.yaml is damaged" in err.splitlines()[-1]


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"stream": {}},
        {"samples": "x"},
        {"watch": {"nonsense": 1}},
        {"best": 5},
        {"recent": None, "loss_scale": []},
    ],
)
def test_a_checkpoint_with_a_state_of_another_making_ends_in_one_line(copy: Path, state: dict[str, Any]) -> None:
    newest = max((copy / "checkpoints").glob("step-*"))
    saved = read_checkpoint(newest)
    saved.state = saved.state | state if state else {}
    shutil.rmtree(newest)
    write_checkpoint(saved, newest.parent)
    with pytest.raises(UserError, match="holds a state that isotrain does not write") as caught:
        resume(open_run(copy))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1], ids=["emptied", "cut short"])
def test_a_configuration_that_lost_its_lines_is_named_before_anything_is_opened(
    copy: Path, invoke: Invoke, kept: int
) -> None:
    lines = (copy / "config.yaml").read_text().splitlines(keepends=True)
    (copy / "config.yaml").write_text("".join(lines[:kept]))
    code, _, err = invoke("train", "--resume", str(copy))
    assert code == 2
    assert "config.yaml has no " in err
    assert "copy the whole run folder again" in err
