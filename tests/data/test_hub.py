"""Data sets of the Hub: `datasets` stands in memory, its offline error is the real one."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
from isotrain import UserError
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.data.datasets import load_dataset
from isotrain.albert_core.tasks import TASKS


def serve(monkeypatch: pytest.MonkeyPatch, **splits: Any) -> list[str]:
    """Makes `datasets.load_dataset` give `splits`; returns the list of ids asked for."""
    asked: list[str] = []

    def loaded(name: str) -> datasets.DatasetDict:
        asked.append(name)
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", loaded)
    return asked


def split(features: datasets.Features | None = None, **columns: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns, features=features)


def test_banking77_is_an_alias_and_label_text_names_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = split(text=["where?", " why\n", "who"], label=[1, 0, 1], label_text=["place", "reason", "place"])
    asked = serve(monkeypatch, train=rows, test=rows)
    data = load_dataset("banking77")
    assert asked == ["mteb/banking77"]
    assert data.name == "mteb/banking77"
    assert data.label_names == ["reason", "place"]
    assert (data.train.texts, data.train.labels) == (["where?", " why\n", "who"], [1, 0, 1])


def test_the_subj_recipes_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """As SetFit publishes it: text, label, label_text; the recipe's own configuration loads it."""
    rows = split(text=["a plot", "a view"], label=[0, 1], label_text=["objective", "subjective"])
    asked = serve(monkeypatch, train=rows, test=rows)
    config = load_config("subj").config
    data = TASKS[config.task].load(config)
    assert asked == ["SetFit/subj"]
    assert (data.label_names, data.train.texts, data.train.labels) == (
        ["objective", "subjective"],
        ["a plot", "a view"],
        [0, 1],
    )


def test_class_labels_give_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["1", "2", "3"])}
    )
    rows = split(features, sentence=["a", "b", "c"], label=[1, 2, 1])
    serve(monkeypatch, train=rows, validation=rows)
    data = load_dataset("org/stars")
    # Ids stay ids, although the names look like ids too.
    assert (data.label_names, data.train.labels) == (["1", "2", "3"], [1, 2, 1])


def test_a_lone_split_takes_test_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = split(text=[f"t{n}" for n in range(20)], label=[n % 2 for n in range(20)], blob=[None] * 20)
    serve(monkeypatch, train=rows)
    assert len(load_dataset("org/name", test_fraction=0.2).test) == 4
    with pytest.raises(UserError, match="test_fraction"):
        load_dataset("org/name")


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"test": split(text=["a"], label=[0])}, "no train split"),
        ({"train": split(body=["a", "b"], label=[0, 1])}, "'body', 'label'"),
        ({"train": split(text=["a", "b"], label=[0, 1]), "test": split(text=["a"], other=[0])}, "lacks the columns"),
        ({"train": split(text=["a", "b"], label=[0, 1]), "test": split(text=["a"], label=[-1])}, "negative"),
        ({"train": split(text=["a", ""], label=[0, 1]), "test": split(text=["a"], label=[0])}, "row 1"),
        ({"train": split(text=["a", "b"], label=[0.5, 1.0]), "test": split(text=["a"], label=[1.0])}, "fraction"),
        ({"train": split(text=["a", "b"], label=[0, 1]), "test": split(text=[], label=[])}, "no rows"),
    ],
)
def test_unusable_hub_data_is_refused(monkeypatch: pytest.MonkeyPatch, splits: dict[str, Any], said: str) -> None:
    serve(monkeypatch, **splits)
    with pytest.raises(UserError, match=said):
        load_dataset("org/name")


def test_without_a_network_one_line_says_what_to_do() -> None:
    with pytest.raises(UserError) as caught:
        load_dataset("mteb/this-data-set-is-not-cached")
    message = str(caught.value)
    assert "read as a Hub id" in message
    assert "embedded:intents" in message
    assert "\n" not in message
