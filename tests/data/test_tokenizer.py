"""Tokenizers against the files themselves, read by `tokenizers` and `transformers` directly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isotrain import UserError
from isotrain.albert_core.data.datasets import load_dataset
from isotrain.albert_core.tokens.tokenizer import TextTokenizer, load_tokenizer
from tokenizers import Tokenizer

TEXTS = ["re-activate my card (please)", "Naïve café, 2008, ``quoted''", "x", "中文 text\nnext line  ", "[CLS] inside"]


def unflatten(ids: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    return [ids[start:stop].tolist() for start, stop in pairwise(offsets)]


def encoded(tokenizer: TextTokenizer, texts: list[str], max_length: int = 512) -> list[list[int]]:
    ids, offsets, types = tokenizer.encode_batch(texts, max_length)
    assert (ids.dtype, offsets.dtype, types) == (np.int32, np.int64, None)
    return unflatten(ids, offsets)


def refusal(*names: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_tokenizer(*names, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def trained() -> TextTokenizer:
    texts = load_dataset("embedded:intents?train=770&test=77").train.texts
    return load_tokenizer(None, "random:tiny", texts=texts, vocab_size=30000)


@pytest.mark.shared
def test_albert_file_gives_its_own_ids(shared_data: Path) -> None:
    path = shared_data / "tokenizer" / "tokenizer.json"
    tokenizer = load_tokenizer(str(path), "random:albert-base-v2", vocab_size=30000)
    assert tokenizer.tokens("re-activate") == ["[CLS]", "▁re", "-", "activ", "ate", "[SEP]"]
    golden = Tokenizer.from_file(str(path))
    texts = TEXTS + load_dataset(str(shared_data / "banking77")).test.texts
    assert encoded(tokenizer, texts) == [encoding.ids for encoding in golden.encode_batch(texts)]
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.label) == (30000, 0, str(path))


@pytest.mark.shared
def test_albert_folder_uses_tokenizer_json_not_spiece(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "tokenizer"
    assert load_tokenizer(None, str(folder)).tokens("re-activate")[1:-1] == ["▁re", "-", "activ", "ate"]
    shutil.copy(folder / "spiece.model", tmp_path)
    message = refusal(None, str(tmp_path))
    assert "spiece.model" in message
    assert "wrong ids" in message
    assert "tokenizer.json" in message


def test_stored_truncation_and_padding_are_switched_off(minilm_folder: Path) -> None:
    stored = Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    assert stored.truncation is not None, "the trap this test is about is gone from the file"
    assert stored.padding is not None, "the trap this test is about is gone from the file"
    tokenizer = load_tokenizer(None, str(minilm_folder), vocab_size=30522)
    short, long = encoded(tokenizer, ["hello there", "word " * 400])
    assert len(short) == 4
    assert len(long) == 402


def test_stored_truncation_and_padding_are_not_saved_again(minilm_folder: Path, tmp_path: Path) -> None:
    load_tokenizer(None, str(minilm_folder)).save(tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (saved.truncation, saved.padding) == (None, None)


def test_bert_folder_agrees_with_transformers(minilm_folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(minilm_folder))
    texts = TEXTS + load_dataset("embedded:intents").test.texts
    ours = load_tokenizer(None, str(minilm_folder))
    for max_length in (512, 10):
        assert encoded(ours, texts, max_length) == theirs(texts, truncation=True, max_length=max_length)["input_ids"]


def test_bert_vocabulary_alone_gives_the_same_ids(minilm_folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(minilm_folder / name, tmp_path)
    alone = load_tokenizer(None, str(tmp_path), vocab_size=30522)
    whole = load_tokenizer(str(minilm_folder / "tokenizer.json"), str(tmp_path), vocab_size=30522)
    texts = TEXTS + load_dataset("embedded:intents").test.texts
    assert encoded(alone, texts) == encoded(whole, texts)
    assert alone.pad_id == whole.pad_id == 0


def test_a_cased_bert_vocabulary_keeps_case(minilm_folder: Path, tmp_path: Path) -> None:
    shutil.copy(minilm_folder / "vocab.txt", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "tokenizer_class": "BertTokenizer"}')
    cased = load_tokenizer(None, str(tmp_path))
    assert "hello" in cased.tokens("hello")
    assert "hello" not in cased.tokens("HELLO")


def test_max_length_counts_special_tokens(trained: TextTokenizer) -> None:
    text = "how do i top up my card with another card today please"
    (full,) = encoded(trained, [text])
    (cut,) = encoded(trained, [text], max_length=7)
    assert cut == [*full[:6], full[-1]]
    assert len(encoded(trained, [text], max_length=3)[0]) == 3
    with pytest.raises(UserError, match="at least 3"):
        trained.encode_batch([text], 2)
    # The shorter limit of an earlier call doesn't stay.
    assert len(trained.tokens(text)) == len(full)
    assert encoded(trained, [text]) == [full]


def test_pairs_have_types_and_lose_from_the_longer(trained: TextTokenizer) -> None:
    first, second = "top up my card", "how do i change the pin of my card in the app and when"
    ids, offsets, types = trained.encode_batch([first, "x"], 512, [second, "y"])
    assert types is not None
    assert types.dtype == np.uint8
    a, b = trained.tokens(first), trained.tokens(second)
    assert offsets.tolist()[1] == len(a) + len(b) - 1
    assert types[: offsets[1]].tolist() == [0] * len(a) + [1] * (len(b) - 1)
    assert ids[: offsets[1]].tolist() == encoded(trained, [first])[0] + encoded(trained, [second])[0][1:]
    cut_ids, _, cut_types = trained.encode_batch([first], len(a) + 8, [second])
    assert cut_types is not None
    assert cut_ids[: len(a)].tolist() == encoded(trained, [first])[0]
    assert cut_types.tolist() == [0] * len(a) + [1] * 8
    with pytest.raises(UserError, match="one each"):
        trained.encode_batch([first], 12, [second, second])


def test_trained_tokenizer_has_alberts_special_tokens(trained: TextTokenizer) -> None:
    assert trained.label == "embedded (trained on this data set)"
    assert encoded(trained, ["[MASK]"]) == [[2, 4, 3]]
    assert encoded(trained, ["<pad><unk>"])[0][1:-1] == [0, 1]
    assert encoded(trained, ["MY Card Café"]) == encoded(trained, ["my card cafe"])
    assert 1 in encoded(trained, ["語"])[0]
    assert trained.vocab_size <= 8000
    assert trained.pad_id == 0


@pytest.mark.parametrize("vocab_size", [120, 700])
def test_trained_vocabulary_fits_the_model(vocab_size: int) -> None:
    texts = load_dataset("embedded:intents?train=770&test=77").train.texts
    tokenizer = load_tokenizer(None, "random:tiny", texts=texts, vocab_size=vocab_size)
    assert tokenizer.vocab_size == vocab_size
    assert max(max(row) for row in encoded(tokenizer, texts)) < vocab_size
    assert "characters" in refusal(None, "random:tiny", texts=texts, vocab_size=20)


def test_training_is_the_same_in_every_process_and_thread_count() -> None:
    code = (
        "from isotrain.albert_core.data.datasets import load_dataset\n"
        "from isotrain.albert_core.tokens.tokenizer import load_tokenizer\n"
        "texts = load_dataset('embedded:intents').train.texts\n"
        "print(load_tokenizer('embedded', 'random:tiny', texts=texts, vocab_size=30000).fingerprint)"
    )
    found = set()
    for parallel, threads in (("false", "1"), ("true", "2"), ("true", "7")):
        settings = {"TOKENIZERS_PARALLELISM": parallel, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | settings
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_save_and_load_give_the_same_tokenizer(trained: TextTokenizer, tmp_path: Path) -> None:
    trained.encode_batch(["some text"], 5)
    trained.save(tmp_path / "saved")
    loaded = load_tokenizer(str(tmp_path / "saved"), "random:tiny", vocab_size=30000)
    assert (loaded.fingerprint, loaded.label, loaded.pad_id) == (trained.fingerprint, trained.label, trained.pad_id)
    assert encoded(loaded, TEXTS) == encoded(trained, TEXTS)
    assert json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["truncation"] is None


def test_fingerprints_tell_tokenizers_apart(trained: TextTokenizer, minilm_folder: Path) -> None:
    other = load_tokenizer(None, "random:tiny", texts=["other words", "than these"], vocab_size=30000)
    assert len({trained.fingerprint, other.fingerprint, load_tokenizer(None, str(minilm_folder)).fingerprint}) == 3


def test_a_tokenizer_of_another_model_is_refused(minilm_folder: Path) -> None:
    message = refusal(str(minilm_folder), "random:tiny", vocab_size=30000)
    assert "30521" in message
    assert "30000" in message
    assert "tokenizer_name" in message


def test_embedded_is_for_random_weights_and_needs_texts() -> None:
    assert "trained on other numbers" in refusal("embedded", "albert/albert-base-v2", texts=["a b"])
    assert "no" in refusal(None, "random:tiny", vocab_size=30000)


def test_a_tokenizer_without_special_tokens_is_refused(tmp_path: Path, trained: TextTokenizer) -> None:
    trained.save(tmp_path)
    definition = json.loads((tmp_path / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    assert "[CLS]" in refusal(str(tmp_path / "tokenizer.json"), "random:tiny")


@pytest.mark.parametrize(
    ("files", "name", "said"),
    [
        ({}, "missing.json", "read as a local path"),
        ({}, "", "it has nothing"),
        ({"config.json": "{}"}, "", "'config.json'"),
        ({"tokenizer.json": "{"}, "tokenizer.json", "no tokenizer.json"),
        ({"tokenizer.json": "{}"}, "", "no tokenizer.json"),
        ({"tokenizer.json": "\udcff"}, "", "is not UTF-8"),
        ({"spiece.model": "x"}, "spiece.model", ".model file"),
        ({"tokenizer.json": "{}", "isotrain_tokenizer.json": "{"}, "", "truncated JSON"),
        ({"tokenizer.json": "{}", "isotrain_tokenizer.json": '{"label": 3}'}, "", "lacks label"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, files: dict[str, str], name: str, said: str) -> None:
    for file, content in files.items():
        (tmp_path / file).write_text(content, errors="surrogateescape")
    assert said in refusal(str(tmp_path / name), "random:tiny")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline Hub cache of our own; returns the snapshot folder of ``org/model`` in it."""
    from huggingface_hub import constants

    repository = tmp_path / "models--org--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return snapshot


def test_hub_id_uses_the_cached_tokenizer_json(hub_cache: Path, trained: TextTokenizer) -> None:
    trained.save(hub_cache)
    (hub_cache / "isotrain_tokenizer.json").unlink()
    tokenizer = load_tokenizer(None, "org/model", vocab_size=30000)
    assert (tokenizer.fingerprint, tokenizer.label) == (trained.fingerprint, "org/model")


def test_hub_repository_with_spiece_alone_is_refused(hub_cache: Path) -> None:
    (hub_cache / "spiece.model").write_bytes(b"x")
    assert "wrong ids" in refusal(None, "org/model")


def test_without_a_network_one_line_says_what_to_do(hub_cache: Path) -> None:
    message = refusal(None, "org/not-cached")
    assert "read as a Hub id" in message
    assert "local tokenizer.json" in message
    assert "read as a Hub id" in refusal("a/b/c", "random:tiny")
