"""Whole answers as labels: the rules, the classes they make, and the answer that stands for each."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.albert_core.config.label_rules import RULES, check_rule, most_frequent, normalise
from isotrain.albert_core.data.datasets import load_dataset

ALL = list(RULES)


@pytest.mark.parametrize(
    ("rules", "text", "wanted"),
    [
        (
            ["placeholders"],
            "Hi {name}, {{Order ID}} on [DATE] for <order_id>",
            "Hi <name>, <order_id> on <date> for <order_id>",
        ),
        (
            ["placeholders"],
            "a [b and some more words than any placeholder has] {",
            "a [b and some more words than any placeholder has] {",
        ),
        (["urls"], "see https://a.example/x?y=1, or www.b.org.", "see <url>, or <url>."),
        (["emails"], "write to Jo.Do+x@mail.a-b.org!", "write to <email>!"),
        (["numbers"], "$1,299.50 on 2024-05-06 at 10:30, 25 %", "<number> on <number> at <number>, <number>"),
        (["numbers"], "b2b and covid19, not 3rd, <order2>", "b2b and covid19, not 3rd, <order2>"),
        (["case"], "STRASSE Straße", "strasse strasse"),
        (["unicode"], "“ﬁne” – don’t", '"fine" - don\'t'),
        (["punctuation"], "Well, it's (really) up-to-date!", "Well  it's  really  up-to-date "),
        (["white_space"], "  a \n\t b ", "a b"),
        (["s/colou?r/color/", "case"], "Colour COLOUR colour", "colour colour color"),
        (["case", "s/colou?r/color/"], "Colour COLOUR colour", "color color color"),
        ([], " as It is ", " as It is "),
    ],
)
def test_each_rule_does_what_it_says(rules: list[str], text: str, wanted: str) -> None:
    assert normalise(text, rules) == wanted


@pytest.mark.parametrize("text", ["Hi {name}, 3 days: https://x.org/1!", "“A”  b, <c d> 5%", "ﬁ [X] a@b.org — 1.5"])
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalise(normalise(text, ALL), ALL) == normalise(text, ALL)


@pytest.mark.parametrize("rule", ["lower", "s/(/x/", "s/a/b", "s/a/b/g", "s/a/\\2/", ""])
def test_a_rule_that_is_none_is_refused(rule: str) -> None:
    with pytest.raises(UserError) as caught:
        check_rule(rule)
    assert repr(rule) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_most_frequent_wins_and_ties_go_to_the_first_in_order() -> None:
    assert most_frequent([["b", "a", "b"], ["b", "a"], ["a", "b"], ["x"]]) == ["b", "a", "a", "x"]


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "response"), *rows])
    return str(path)


def test_answers_that_say_the_same_are_one_class(tmp_path: Path) -> None:
    refund = ["Hi {name}, 5 days.", "hi [NAME],  7 days.", "Hi {name}, 5 days."]
    lost = ["Call us!", "call us"]
    rows = [(f"refund {n}", refund[n % 3]) for n in range(9)] + [(f"lost {n}", lost[n % 2]) for n in range(8)]
    data = load_dataset(write(tmp_path / "all.csv", rows), label_rules=ALL, test_fraction=0.25)
    assert data.label_names == ["call us", "hi <name> <number> days"]
    for split in (data.train, data.test):
        assert [text.split()[0] for text in split.texts] == [["lost", "refund"][label] for label in split.labels]
    kept = [row for row, text in rows if row in data.train.texts]
    answers = dict(rows)
    assert data.responses == most_frequent(
        [[answers[text] for text in kept if text.startswith(word)] for word in ("lost", "refund")]
    )
    plain = load_dataset(write(tmp_path / "all.csv", rows), test_fraction=0.25)
    assert (len(plain.label_names), plain.responses) == (4, None)


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([("a", "!!"), ("b", "x")], {}, "line 2: nothing is left of the label '!!'"),
        ([("a", "x 1"), ("b", "X 2")], {}, "one label only"),
        ([("a", ""), ("b", "x")], {}, "line 2: the label ('response') is empty"),
    ],
)
def test_unusable_answers_are_refused(
    tmp_path: Path, rows: list[tuple[str, str]], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset(write(tmp_path / "all.csv", rows), label_rules=ALL, test_fraction=0.5, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_embedded_answers_are_the_embedded_intents() -> None:
    name = "?train=231&test=154"
    intents, answers = (
        load_dataset("embedded:intents" + name),
        load_dataset("embedded:responses" + name, label_rules=ALL),
    )
    assert answers.train.texts == intents.train.texts
    assert len(answers.label_names) == 77
    for split, known in ((answers.train, intents.train), (answers.test, intents.test)):
        pairs = set(zip(split.labels, known.labels, strict=True))
        assert len(pairs) == 77, "one answer an intent, one intent an answer"
    assert answers.responses is not None
    assert [normalise(text, ALL) for text in answers.responses] == answers.label_names
    with pytest.raises(UserError, match="without a training row"):
        load_dataset("embedded:responses" + name)
    with pytest.raises(UserError, match="no texts"):
        load_dataset("embedded:intents", label_rules=ALL)


def test_the_document_says_what_each_rule_does() -> None:
    document = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text()
    for name, rule in RULES.items():
        assert f"* `{name}`: {rule.meaning}\n" in document
