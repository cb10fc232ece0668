"""Pairs of texts: their columns, splits and token types, judged by the csv module and by transformers."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from isotrain import UserError
from isotrain.albert_core.data.datasets import RawSplit, load_dataset
from isotrain.albert_core.tokens.store import build_token_store
from isotrain.albert_core.tokens.tokenizer import load_tokenizer

PAIRS = "sentence1,sentence2,label\na one,a two,1\nb one,b two,0\n"


def folder(path: Path, **files: str) -> str:
    """A folder of CSV files by split; returns its name."""
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / f"{name}.csv").write_text(content, encoding="utf-8")
    return str(path)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("evaluation", "file", "counts"),
    [
        (None, "test", {1: 1147, 0: 578}),
        ("test", "test", {1: 1147, 0: 578}),
        ("validation", "dev", {1: 279, 0: 129}),
    ],
)
def test_mrpc_loads_as_pairs(shared_data: Path, evaluation: str | None, file: str, counts: dict[int, int]) -> None:
    data = load_dataset(str(shared_data / "mrpc"), evaluation_split=evaluation)
    assert data.text_columns == ("sentence1", "sentence2")
    assert Counter(data.train.labels) == {1: 2474, 0: 1194}
    assert Counter(data.test.labels) == counts
    for split, name in ((data.train, "train"), (data.test, file)):
        with (shared_data / "mrpc" / f"{name}.csv").open(newline="", encoding="utf-8") as lines:
            wanted = [(row["sentence1"], row["sentence2"], int(row["label"])) for row in csv.DictReader(lines)]
        assert list(zip(split.texts, split.pairs or [], split.labels, strict=True)) == wanted


@pytest.mark.parametrize("max_length", [128, 24])
def test_tokens_and_types_are_those_of_transformers(minilm_folder: Path, max_length: int) -> None:
    from transformers import BertTokenizer

    firsts = ["He got up late .", "Amrozi accused his brother , whom he called the witness . " * 3, "x"]
    seconds = ["He slept in .", "Short .", "Referring to him as only the witness , Amrozi accused his brother ." * 3]
    wanted = BertTokenizer.from_pretrained(str(minilm_folder))(firsts, seconds, truncation=True, max_length=max_length)
    tokenizer = load_tokenizer(None, str(minilm_folder))
    store = build_token_store(RawSplit(firsts, [0, 1, 0], seconds), tokenizer, max_length)
    assert store.token_type_ids is not None
    for index, (start, stop) in enumerate(zip(store.offsets, store.offsets[1:], strict=False)):
        assert store.ids[start:stop].tolist() == wanted["input_ids"][index]
        assert store.token_type_ids[start:stop].tolist() == wanted["token_type_ids"][index]
    assert {0, 1} == set(store.token_type_ids.tolist())


@pytest.mark.parametrize(
    ("columns", "asked", "chosen"),
    [
        ("sentence1,sentence2", {}, ("sentence1", "sentence2")),
        ("premise,hypothesis", {}, ("premise", "hypothesis")),
        ("Question1,Question2", {}, ("Question1", "Question2")),
        ("sentence1,sentence2", {"text_column": "sentence1"}, ("sentence1",)),
        ("a,b", {"text_column": "a", "text_pair_column": "b"}, ("a", "b")),
        ("text,b", {"text_pair_column": "b"}, ("text", "b")),
        ("sentence1,sentence2", {"text_pair_column": "sentence2"}, ("sentence1", "sentence2")),
        ("sentence1,sentence2", {"text_column": "sentence2", "text_pair_column": "sentence1"}, None),
    ],
)
def test_which_columns_are_a_pair(
    tmp_path: Path, columns: str, asked: dict[str, str], chosen: tuple[str, ...] | None
) -> None:
    content = f"{columns},label\nx one,y two,1\nx three,y four,0\n"
    data = load_dataset(folder(tmp_path / "d", train=content, test=content), **asked)
    assert data.text_columns == (chosen or ("sentence2", "sentence1"))
    assert data.train.texts == (["x one", "x three"] if chosen else ["y two", "y four"])
    assert data.train.pairs == (None if chosen and len(chosen) == 1 else data.train.pairs)
    if len(data.text_columns) == 2:
        assert data.train.pairs == (["y two", "y four"] if chosen else ["x one", "x three"])


@pytest.mark.parametrize(
    ("train", "options", "said"),
    [
        ("sentence1,sentence2,label\na,,1\nb,c,0\n", {}, "unpaired sentences: empty texts under 'sentence2' (line 2)"),
        ("sentence1,sentence2,label\na,b,1\n  ,c,0\n", {}, "unpaired sentences: empty texts under 'sentence1'"),
        (PAIRS, {"text_column": "sentence1", "text_pair_column": "second"}, "no column 'second'"),
        (PAIRS, {"text_column": "sentence1", "text_pair_column": "sentence1"}, "both 'sentence1'"),
        (PAIRS, {"text_column": "sentence1", "text_pair_column": "label"}, "both 'label'"),
        (PAIRS, {"evaluation_split": "test"}, "no test file"),
        ("sentence1,label\na,1\nb,0\n", {}, "no text column"),
    ],
)
def test_unusable_pairs_are_refused_in_one_line(tmp_path: Path, train: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset(folder(tmp_path / "d", train=train, dev=PAIRS), **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_test_part_of_one_file_keeps_its_pairs(tmp_path: Path) -> None:
    rows = "".join(f"first {n},second {n},{n % 2}\n" for n in range(20))
    (tmp_path / "all.csv").write_text("sentence1,sentence2,label\n" + rows)
    data = load_dataset(str(tmp_path / "all.csv"), test_fraction=0.2)
    for split in (data.train, data.test):
        assert [text.split()[1] for text in split.texts] == [text.split()[1] for text in split.pairs or []]
    with pytest.raises(UserError, match="evaluation_split"):
        load_dataset(str(tmp_path / "all.csv"), test_fraction=0.2, evaluation_split="test")


@pytest.mark.parametrize(
    ("dataset_id", "repository"),
    [("glue/mrpc", ("glue", "mrpc")), ("nyu-mll/glue/mrpc", ("nyu-mll/glue", "mrpc")), ("org/mrpc", ("org/mrpc",))],
)
def test_a_hub_id_may_name_a_configuration(
    monkeypatch: pytest.MonkeyPatch, dataset_id: str, repository: tuple[str, ...]
) -> None:
    asked: list[tuple[str, ...]] = []

    def loaded(*name: str) -> datasets.DatasetDict:
        asked.append(name)
        columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "idx": [7, 9]}
        known = datasets.Dataset.from_dict(columns | {"label": [1, 0]})
        hidden = datasets.Dataset.from_dict(columns | {"label": [-1, -1]})
        return datasets.DatasetDict({"train": known, "validation": known, "test": hidden})

    monkeypatch.setattr(datasets, "load_dataset", loaded)
    data = load_dataset(dataset_id, evaluation_split="validation")
    assert asked == [repository]
    assert (data.test.texts, data.test.pairs, data.test.labels) == (["a", "b"], ["c", "d"], [1, 0])
    with pytest.raises(UserError, match="negative"):
        load_dataset(dataset_id)
