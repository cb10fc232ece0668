"""The figures of the SQuAD 2.0 evaluation (Rajpurkar et al. 2018, 1806.03822), by the rules of its official script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .squad_score import normalised, token_f1


@dataclass(frozen=True)
class Part:
    """Percentages, as means over `total` questions."""

    exact: float
    f1: float
    total: int


@dataclass(frozen=True)
class Threshold:
    """The best percentage, and the odds above which a question gets no answer there."""

    best: float
    threshold: float


@dataclass(frozen=True)
class SquadV2Score:
    """The figures of all questions, and of those with and without an answer (None if there are none)."""

    all: Part
    has_answer: Part | None
    no_answer: Part | None
    best_exact: Threshold
    best_f1: Threshold

    def figures(self) -> dict[str, float]:
        """The figures by their official names."""
        found: dict[str, float] = {}
        for prefix, part in (("", self.all), ("HasAns_", self.has_answer), ("NoAns_", self.no_answer)):
            if part is not None:
                found |= {f"{prefix}exact": part.exact, f"{prefix}f1": part.f1, f"{prefix}total": float(part.total)}
        for name, found_best in (("best_exact", self.best_exact), ("best_f1", self.best_f1)):
            found |= {name: found_best.best, f"{name}_thresh": found_best.threshold}
        return found


def score_v2(
    predictions: Mapping[str, str],
    answers: Mapping[str, Sequence[str]],
    odds: Mapping[str, float],
    threshold: float | None = None,
) -> SquadV2Score:
    """Scores predictions against the accepted answers of every question, of which there may be none.

    Args:
        predictions: By question id. "" is no answer.
        answers: By question id.
        odds: By question id: how sure it is that there is no answer, in any unit.
        threshold: Questions with higher odds count as not answered. By default, the one with the best F1.

    Raises:
        ValueError: There are no questions, or a question lacks a prediction or its odds.
    """
    if not answers:
        raise ValueError("there are no questions to score")
    missing = [question for question in answers if question not in predictions or question not in odds]
    if missing:
        raise ValueError(f"{len(missing)} questions have no prediction or no odds, the first is {missing[0]!r}")
    exact: dict[str, float] = {}
    f1: dict[str, float] = {}
    for question, given in answers.items():
        # Answers of which nothing is left are none.
        accepted = [answer for answer in given if normalised(answer)] or [""]
        predicted = predictions[question]
        exact[question] = max(float(normalised(answer) == normalised(predicted)) for answer in accepted)
        f1[question] = max(_f1(predicted, answer) for answer in accepted)
    best_exact, best_f1 = (_best(scores, predictions, answers, odds) for scores in (exact, f1))
    limit = best_f1.threshold if threshold is None else threshold
    for scores in (exact, f1):
        scores.update((question, float(not given)) for question, given in answers.items() if odds[question] > limit)

    def part(questions: Iterable[str]) -> Part | None:
        chosen = list(questions)
        total = len(chosen)
        if not total:
            return None
        exact_match, overlap = (100.0 * sum(scores[question] for question in chosen) / total for scores in (exact, f1))
        return Part(exact_match, overlap, total)

    everything = part(answers)
    assert everything is not None, "checked above"
    return SquadV2Score(
        everything,
        part(question for question, given in answers.items() if given),
        part(question for question, given in answers.items() if not given),
        best_exact,
        best_f1,
    )


def _f1(predicted: str, answer: str) -> float:
    """`token_f1`. If nothing is left of one of them, 1 if nothing is left of the other."""
    empty = [not normalised(text) for text in (predicted, answer)]
    return float(all(empty)) if any(empty) else token_f1(predicted, answer)


def _best(
    scores: Mapping[str, float],
    predictions: Mapping[str, str],
    answers: Mapping[str, Sequence[str]],
    odds: Mapping[str, float],
) -> Threshold:
    """The best mean over all thresholds, and the lowest threshold that gives it.

    The threshold rises from below all odds, where no question is answered. It is 0 if it is best there.
    """
    score = best = float(sum(not given for given in answers.values()))
    threshold = 0.0
    for question in sorted((question for question in odds if question in answers), key=lambda name: odds[name]):
        score += scores[question] if answers[question] else -float(bool(predictions[question]))
        if score > best:
            best, threshold = score, odds[question]
    return Threshold(100.0 * best / len(scores), threshold)
