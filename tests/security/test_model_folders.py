"""A model or tokenizer folder from a stranger runs no code, is asked no question about, and is refused in one line."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.albert_core.tokens.tokenizer import load_tokenizer
from support.bomb import Bomb
from support.command import Invoke, one_line_error
from transformers import AlbertConfig, AlbertModel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small ALBERT as `save_pretrained` writes it, with Python files beside it that leave a marker when imported."""
    config = AlbertConfig(
        vocab_size=30,
        embedding_size=8,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
        num_hidden_layers=2,
    )
    path = tmp_path / "model"
    AlbertModel(config, add_pooling_layer=False).save_pretrained(path)
    for name in ("configuration_evil", "modeling_evil", "tokenization_evil"):
        code = (
            f"open({str(tmp_path / 'marker')!r}, 'w')\nfrom transformers import AlbertConfig as C, AlbertModel as M\n"
        )
        (path / f"{name}.py").write_text(code)
    return path


@pytest.fixture(autouse=True)
def nothing_ran_and_nothing_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def asked(*_: object) -> str:
        (tmp_path / "marker").touch()
        return "y"

    monkeypatch.setattr("builtins.input", asked)
    yield
    assert not (tmp_path / "marker").exists()


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CODE = {"AutoConfig": "configuration_evil.C", "AutoModel": "modeling_evil.M", "AutoTokenizer": "tokenization_evil.T"}


@pytest.mark.parametrize("kind", ["albert-nova", None, 7, ["albert"]])
def test_an_unknown_kind_with_code_of_its_own_is_refused_in_one_line(folder: Path, kind: Any) -> None:
    edit(folder / "config.json", model_type=kind, auto_map=CODE)
    with pytest.raises(UserError, match="allowed are albert and bert") as caught:
        load_encoder(str(folder))
    assert "\n" not in str(caught.value)


def test_a_known_kind_with_code_of_its_own_is_loaded_by_transformers_own(folder: Path) -> None:
    wanted = load_encoder(str(folder)).fingerprint
    edit(folder / "config.json", auto_map=CODE)
    encoder = load_encoder(str(folder))
    assert encoder.fingerprint == wanted
    assert type(encoder.module()).__module__.startswith("transformers.")


def test_a_kernel_that_the_folder_names_is_not_fetched(folder: Path) -> None:
    edit(folder / "config.json", attn_implementation="stranger/kernel", _attn_implementation="stranger/kernel")
    assert load_encoder(str(folder)).module().config._attn_implementation == "sdpa"


def test_another_model_that_an_adapter_names_is_not_loaded(folder: Path) -> None:
    settings = {"base_model_name_or_path": "stranger/model", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="peft adapter"):
        load_encoder(str(folder))


def test_quantized_weights_are_refused(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(UserError, match="quantized"):
        load_encoder(str(folder))


@pytest.mark.parametrize("beside", [False, True])
def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path, beside: bool) -> None:
    torch.save({"a": Bomb(tmp_path / "marker")}, folder / "pytorch_model.bin")
    if beside:
        load_encoder(str(folder))
        return
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"in a pickle .* write them anew, `.*python -c ") as caught:
        load_encoder(str(folder))
    assert "\n" not in str(caught.value)


def test_the_printed_conversion_works(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = load_encoder(str(folder)).fingerprint
    torch.save(load_encoder(str(folder)).module().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        load_encoder(str(folder))
    monkeypatch.chdir(tmp_path)
    [pasted] = re.findall("`([^`]+)`", str(caught.value))
    subprocess.run(shlex.split(pasted), check=True, timeout=120)
    assert load_encoder(str(tmp_path / "NEW")).fingerprint == wanted


def test_a_renamed_pickle_is_no_safetensors_file(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    with pytest.raises(UserError, match="can't be loaded"):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "x"},
        {"hidden_size": True},
        {"num_hidden_layers": 10**9},
        {"vocab_size": 10**15},
        {"hidden_size": -4},
        {"num_attention_heads": 0},
        {"num_hidden_layers": None},
        {"vocab_size": []},
        {"hidden_act": "os.system"},
        {"hidden_act": 5},
        {"id2label": 5},
        {"num_labels": 10**12},
        {"hidden_size": 48},
        {"num_hidden_groups": 0},
        {"embedding_size": 0},
    ],
)
def test_values_that_no_configuration_has_end_in_one_line(folder: Path, changes: dict[str, Any]) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(UserError) as caught:
        load_encoder(str(folder))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "Error" not in str(caught.value)
    assert "object has no attribute" not in str(caught.value)
    assert "ignore_mismatched_sizes" not in str(caught.value)


def test_a_tokenizer_folders_code_is_not_run(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
    settings = {"tokenizer_class": "Evil", "auto_map": CODE, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ids, _, _ = load_tokenizer(str(folder), str(folder)).encode_batch(["a b"], 16)
    assert ids.tolist() == [2, 5, 6, 3]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "adapter_config.json"])
@pytest.mark.parametrize("nested", ["[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000, "[1, 2]", "nothing", ""])
def test_strange_json_of_a_model_is_refused_in_our_words(folder: Path, name: str, nested: str, invoke: Invoke) -> None:
    (folder / name).write_text(nested)
    for command in (
        ["tt-estimate", "--model", str(folder)],
        ["train", "quickstart", "--set", f"model_name={folder}"],
    ):
        result = invoke(*command)
        one_line_error(result, str(folder))
        assert "recursion" not in result[2]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("nested", ["[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000, "[1, 2]", "nothing", ""])
def test_strange_json_of_a_tokenizer_is_refused_in_our_words(folder: Path, name: str, nested: str) -> None:
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (folder / name).write_text(nested)
    with pytest.raises(UserError, match=re.escape(str(folder))) as caught:
        load_tokenizer(None, str(folder))
    assert "maximum recursion" not in str(caught.value)
