"""The SQuAD scorer against the figures published for two systems' answers, and against cases worked by hand."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from isotrain.albert_core.runs.folder import with_device
from isotrain.albert_core.tasks.squad_score import normalised, score_predictions, token_f1


@pytest.mark.shared
@pytest.mark.parametrize(
    ("system", "exact_match", "f1", "missing", "unknown"),
    [
        ("bert-ensemble", 86.20624408703878, 92.19557978351145, 0, 0),
        ("logistic-regression", 40.14191106906339, 50.98153647324461, 13, 28),
    ],
)
def test_published_answers_get_their_published_scores(
    shared_data: Path, system: str, exact_match: float, f1: float, missing: int, unknown: int
) -> None:
    folder = shared_data / "squad"
    with gzip.open(folder / "dev-v1.1.json.gz", "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    answers = {
        question["id"]: [answer["text"] for answer in question["answers"]]
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    with gzip.open(folder / "reference-predictions" / f"{system}.dev-v1.1.json.gz", "rt", encoding="utf-8") as file:
        predictions = json.load(file)
    score = score_predictions(predictions, answers)
    assert (score.exact_match, score.f1) == (exact_match, f1)
    assert (score.questions, score.missing, score.unknown) == (10570, missing, unknown)
    labelled = with_device(predictions, "tt-emulated")
    assert labelled != predictions
    assert score_predictions(labelled, answers) == replace(score, unknown=unknown + 1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("The U.S. Army", "us army"),
        ("  a\tman, an\nape and the  sea ", "man ape and sea"),
        # A word that begins or ends like an article is none; punctuation goes first, and may join or free one.
        ("Theatre Anna's a-la-carte", "theatre annas alacarte"),
        ("the-end A.", "theend"),
        # Only ASCII punctuation: typographic dashes and quotes stay.
        ("“1990–91”", "“1990–91”"),
        ("...", ""),
    ],
)
def test_answers_are_made_alike(answer: str, said: str) -> None:
    assert normalised(answer) == said


def test_a_devices_label_takes_no_questions_place() -> None:
    assert with_device({"q": "a"}, "") == {"q": "a"}
    assert list(with_device({"q": "a"}, "tt-emulated").items()) == [("device", "tt-emulated"), ("q", "a")]
    asked = {"device": "a phone", "q": "a"}
    assert with_device(asked, "tt-emulated") == asked | {"_device": "tt-emulated"}


def test_f1_counts_a_word_as_often_as_it_occurs() -> None:
    # Two of three words are common: "x" twice in one, once in the other.
    assert token_f1("x x y", "x y z") == pytest.approx(2 / 3)
    assert token_f1("the cat", "a cat") == 1.0
    assert token_f1("dog", "cat") == 0.0
    # Nothing is left of either: the official rule gives 0, although they match exactly.
    assert token_f1("the", "a") == 0.0


def test_the_best_given_answer_counts_and_missing_and_unknown_ids_are_counted() -> None:
    answers = {"q1": ["in Paris", "Paris"], "q2": ["red green"], "q3": ["never asked"]}
    score = score_predictions({"q1": "paris!", "q2": "green blue", "q4": "what?"}, answers)
    assert score.exact_match == pytest.approx(100 / 3)
    assert score.f1 == pytest.approx(100 * (1 + 0.5) / 3)
    assert (score.questions, score.missing, score.unknown) == (3, 1, 1)
    with pytest.raises(ValueError, match="no questions"):
        score_predictions({}, {})
