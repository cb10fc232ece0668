"""Exact match and F1 of answers by the rules of the SQuAD v1.1 evaluation (Rajpurkar et al. 2016, 1606.05250)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class SquadScore:
    """Percentages, as means over all questions.

    Questions without a prediction (`missing`) count as 0. Predictions for `unknown` questions are ignored.
    """

    exact_match: float
    f1: float
    questions: int
    missing: int
    unknown: int


def score_predictions(predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]) -> SquadScore:
    """Scores predictions, keyed by question id, against the accepted answers of every question. The best match counts.

    Raises:
        ValueError: There are no questions.
    """
    if not answers:
        raise ValueError("there are no questions to score")
    exact, overlap, missing = 0, 0.0, 0
    for question, given in answers.items():
        if question not in predictions:
            missing += 1
            continue
        predicted = predictions[question]
        exact += max(normalised(predicted) == normalised(answer) for answer in given)
        overlap += max(token_f1(predicted, answer) for answer in given)
    total = len(answers)
    return SquadScore(
        exact_match=100.0 * exact / total,
        f1=100.0 * overlap / total,
        questions=total,
        missing=missing,
        unknown=sum(question not in answers for question in predictions),
    )


def normalised(answer: str) -> str:
    """Lower case, without ASCII punctuation and the words a, an and the, with single spaces between words."""
    bare = answer.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def token_f1(predicted: str, answer: str) -> float:
    """The harmonic mean of precision and recall of the normalised words. Each word counts as often as it occurs."""
    said, wanted = normalised(predicted).split(), normalised(answer).split()
    common = sum((Counter(said) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)
