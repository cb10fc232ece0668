"""The embedded data set: what it promises, and that a linear model can learn it but not all of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from isotrain import UserError
from isotrain.albert_core.data.datasets import RawDataset, load_dataset
from isotrain.albert_core.data.intents import templates


@pytest.fixture(scope="module")
def intents() -> RawDataset:
    return load_dataset("embedded:intents")


def test_sizes_labels_and_balance(intents: RawDataset) -> None:
    assert (len(intents.train), len(intents.test), len(intents.label_names)) == (77 * 40, 77 * 10, 77)
    assert set(Counter(intents.train.labels).values()) == {40}
    assert set(Counter(intents.test.labels).values()) == {10}
    assert intents.label_names == list(templates().intents)
    assert all(set(family.intents) <= templates().intents.keys() for family in templates().families)


def test_no_text_twice_and_nothing_left_unfilled(intents: RawDataset) -> None:
    texts = [text.lower() for text in intents.train.texts + intents.test.texts]
    assert len(set(texts)) == len(texts)
    assert not [text for text in texts if set(text) & set("{}[]|") or text != " ".join(text.split())]


def test_texts_are_as_long_as_short_questions(intents: RawDataset) -> None:
    words = [len(text.split()) for text in intents.train.texts]
    assert 10 <= sum(words) / len(words) <= 15
    assert min(words) >= 3
    assert max(words) <= 60


def test_order_is_unrelated_to_labels(intents: RawDataset) -> None:
    assert len(set(intents.train.labels[:77])) > 40
    assert len(set(intents.test.labels[:77])) > 40


def test_the_texts_never_change(intents: RawDataset) -> None:
    # Results are compared across machines and versions by this name: another content needs another name.
    assert intents.fingerprint == "798247800c920ab44854a93a92d513dbba6a4440ee37732ffe37fa74c220a3d6"


def test_a_fresh_process_with_another_hash_seed_agrees(intents: RawDataset) -> None:
    code = (
        "from isotrain.albert_core.data.datasets import load_dataset\n"
        "print(load_dataset('embedded:intents').fingerprint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"}
    )
    assert done.stdout.strip() == intents.fingerprint


def test_sizes_and_seed_in_the_name(intents: RawDataset) -> None:
    small = load_dataset("embedded:intents?train=200&test=100")
    assert (len(small.train), len(small.test)) == (200, 100)
    assert set(Counter(small.train.labels).values()) == {2, 3}
    larger = load_dataset("embedded:intents?train=400&test=100")
    assert larger.test == small.test
    other = load_dataset("embedded:intents?train=200&test=100&seed=1")
    assert other.test.texts != small.test.texts
    full = load_dataset("embedded:intents?train=10003&test=3080")
    assert len({*full.train.texts, *full.test.texts}) == 13_083


@pytest.mark.parametrize(
    "dataset_id",
    [
        "embedded:",
        "embedded:other",
        "embedded:intents?train=many",
        "embedded:intents?train=",
        "embedded:intents?train=-5",
        "embedded:intents?train=٣٠٠",
        "embedded:intents?train=76",
        "embedded:intents?test=10",
        "embedded:intents?train=99999999",
        "embedded:intents?size=100",
        "embedded:intents?train=200&train=300",
    ],
)
def test_wrong_names_are_refused(dataset_id: str) -> None:
    with pytest.raises(UserError, match=r"embedded:intents"):
        load_dataset(dataset_id)


@pytest.mark.parametrize("option", [{"text_column": "text"}, {"label_column": "x"}, {"test_fraction": 0.1}])
def test_options_of_files_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"drop {next(iter(option))}"):
        load_dataset("embedded:intents", **option)


def test_a_linear_model_learns_most_of_it_but_not_all(intents: RawDataset) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    words = CountVectorizer()
    model = LogisticRegression(max_iter=200).fit(words.fit_transform(intents.train.texts), intents.train.labels)
    accuracy = model.score(words.transform(intents.test.texts), intents.test.labels)
    assert 0.6 < accuracy < 0.98


def plain(text: str) -> str:
    """The words alone, to compare sentences by."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


@pytest.mark.shared
def test_nothing_is_taken_from_banking77(intents: RawDataset, shared_data: Path) -> None:
    theirs = load_dataset(str(shared_data / "banking77"))
    assert not set(intents.label_names) & set(json.loads((shared_data / "banking77/categories.json").read_text()))
    known = {plain(text) for text in theirs.train.texts + theirs.test.texts}
    for seed in (0, 1):
        ours = load_dataset(f"embedded:intents?train=20000&test=5000&seed={seed}")
        assert not known & {plain(text) for text in ours.train.texts + ours.test.texts}
