"""The SQuAD 2.0 scorer against the official script's rules, written down here anew, to the last digit."""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from isotrain.albert_core.tasks.squad_score_v2 import score_v2

pytestmark = pytest.mark.core

PIECES = (
    *("the", "a", "an", "The", "An", "", "Paris", "in Paris", "1990–91", "U.S.", "us", "$5.00", "500", "½", "naïve"),
    *("Ünï", "ǅ", "ß", "SS", "東京", "\u00a0", "\u2009", "\u200b", "...", "“quoted”", "'s", "-", "the-end", "x", "İ"),
)


class Judge:
    """What evaluate-v2.0.py does with a data set, predictions, its file of odds and its threshold."""

    def __init__(self, answers: dict[str, list[str]], predictions: dict[str, str], odds: dict[str, float]) -> None:
        self.answers, self.predictions, self.odds = answers, predictions, odds
        self.exact: dict[str, Any] = {}
        self.f1: dict[str, Any] = {}
        for question in answers:
            gold = [answer for answer in answers[question] if self.normalize(answer)]
            gold = gold if gold else [""]
            self.exact[question] = max(self.compute_exact(one, predictions[question]) for one in gold)
            self.f1[question] = max(self.compute_f1(one, predictions[question]) for one in gold)

    @staticmethod
    def normalize(text: str) -> str:
        lowered = text.lower()
        bare = "".join(sign for sign in lowered if sign not in set(string.punctuation))
        without = re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", bare)
        return " ".join(without.split())

    def compute_exact(self, gold: str, predicted: str) -> int:
        return int(self.normalize(gold) == self.normalize(predicted))

    def compute_f1(self, gold: str, predicted: str) -> Any:
        wanted, given = (self.normalize(text).split() if text else [] for text in (gold, predicted))
        common = Counter(wanted) & Counter(given)
        same = sum(common.values())
        if len(wanted) == 0 or len(given) == 0:
            return int(wanted == given)
        if same == 0:
            return 0
        precision = 1.0 * same / len(given)
        recall = 1.0 * same / len(wanted)
        return (2 * precision * recall) / (precision + recall)

    def figures(self, threshold: float) -> dict[str, float]:
        exact, f1 = (self.with_threshold(scores, threshold) for scores in (self.exact, self.f1))
        answerable = [question for question in self.answers if self.answers[question]]
        empty = [question for question in self.answers if not self.answers[question]]
        found = self.means("", exact, f1, list(exact))
        if answerable:
            found.update(self.means("HasAns_", exact, f1, answerable))
        if empty:
            found.update(self.means("NoAns_", exact, f1, empty))
        found["best_exact"], found["best_exact_thresh"] = self.best(self.exact)
        found["best_f1"], found["best_f1_thresh"] = self.best(self.f1)
        return found

    def with_threshold(self, scores: dict[str, Any], threshold: float) -> dict[str, Any]:
        return {
            question: float(not self.answers[question]) if self.odds[question] > threshold else score
            for question, score in scores.items()
        }

    @staticmethod
    def means(prefix: str, exact: dict[str, Any], f1: dict[str, Any], questions: list[str]) -> dict[str, float]:
        total = len(questions)
        return {
            f"{prefix}exact": 100.0 * sum(exact[question] for question in questions) / total,
            f"{prefix}f1": 100.0 * sum(f1[question] for question in questions) / total,
            f"{prefix}total": total,
        }

    def best(self, scores: dict[str, Any]) -> tuple[float, float]:
        current: Any = sum(1 for question in self.answers if not self.answers[question])
        best, threshold = current, 0.0
        for question in sorted(self.odds, key=lambda name: self.odds[name]):
            if question not in scores:
                continue
            if self.answers[question]:
                change = scores[question]
            elif self.predictions[question]:
                change = -1
            else:
                change = 0
            current += change
            if current > best:
                best, threshold = current, self.odds[question]
        return 100.0 * best / len(scores), threshold


def text(generator: random.Random) -> str:
    return generator.choice(("", " ", ", ")).join(generator.choices(PIECES, k=generator.choice((0, 1, 2, 4))))


def drawn(seed: int, questions: int) -> tuple[dict[str, list[str]], dict[str, str], dict[str, float]]:
    """Answers, predictions and odds: half of the questions have no answer, many answers are hit, many odds equal."""
    generator = random.Random(seed)
    names = [f"q{number}" for number in range(questions)]
    answers = {name: [text(generator) for _ in range(generator.choice((0, 0, 0, 1, 3)))] for name in names}
    predictions = {}
    for name in generator.sample(names, questions):
        hit = answers[name] and generator.random() < 0.5
        predictions[name] = generator.choice(answers[name]) if hit else text(generator)
    odds = {
        name: round(generator.gauss(0, 3), generator.choice((0, 1, 9))) for name in generator.sample(names, questions)
    }
    return answers, predictions, odds


@pytest.mark.parametrize("threshold", [0.0, -2.0, 1.0, 1e9, -1e9, None])
@pytest.mark.parametrize("seed", range(4))
def test_every_figure_is_the_official_scripts_to_the_last_digit(seed: int, threshold: float | None) -> None:
    answers, predictions, odds = drawn(seed, 1500)
    judge = Judge(answers, predictions, odds)
    limit = judge.best(judge.f1)[1] if threshold is None else threshold
    assert score_v2(predictions, answers, odds, threshold).figures() == judge.figures(limit)
    assert 0 < judge.figures(limit)["best_f1"] < 100


@pytest.mark.parametrize("kept", [lambda given: bool(given), lambda given: not given])
def test_a_part_without_questions_has_no_figures(kept: Callable[[list[str]], bool]) -> None:
    answers, predictions, odds = drawn(9, 60)
    answers = {name: given for name, given in answers.items() if kept(given)}
    figures = score_v2(predictions, answers, {name: odds[name] for name in answers}, 0.0).figures()
    assert figures == Judge(answers, predictions, {name: odds[name] for name in answers}).figures(0.0)
    assert len({name.partition("_")[0] for name in figures} & {"HasAns", "NoAns"}) == 1


def test_figures_worked_by_hand() -> None:
    answers = {"one": ["Paris"], "two": [], "three": ["red green"], "four": []}
    predictions = {"one": "paris!", "two": "Rome", "three": "green", "four": "Oslo"}
    odds = {"one": -3.0, "three": -1.0, "two": 0.5, "four": 2.0}
    score = score_v2(predictions, answers, odds, 1.0)
    # two is below the threshold and so answered, which is wrong; four isn't.
    assert (score.all.exact, score.all.total) == (50.0, 4)
    assert score.all.f1 == pytest.approx(100 * (1 + 2 / 3 + 0 + 1) / 4)
    assert score.no_answer is not None
    assert (score.no_answer.exact, score.no_answer.total) == (50.0, 2)
    # The best is to answer one alone, or for F1 one and three.
    assert (score.best_exact.best, score.best_exact.threshold) == (75.0, -3.0)
    assert (score.best_f1.best, score.best_f1.threshold) == (pytest.approx(100 * (3 + 2 / 3) / 4), -1.0)


def test_questions_without_a_prediction_are_refused() -> None:
    with pytest.raises(ValueError, match="no questions"):
        score_v2({}, {}, {})
    with pytest.raises(ValueError, match="1 questions have no prediction or no odds, the first is 'b'"):
        score_v2({"a": "x", "b": "y"}, {"a": ["x"], "b": []}, {"a": 0.0})
