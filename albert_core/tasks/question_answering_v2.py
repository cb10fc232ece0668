"""Answers questions with a span of their context, or says that it has no answer, as in SQuAD 2.0.

A question without an answer is trained to point at [CLS]. It gets no answer if [CLS] scores more than the best span by
more than a threshold (Devlin et al. 2018, 1810.04805), by default one with the best F1 on the evaluation split.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from ..config.schema import TrainConfig
from ..data.questions import QuestionDataset
from ..tokens.store import TokenStore
from .question_answering import QuestionAnswering, described, found_in
from .spans import Answers, Span
from .squad_score_v2 import score_v2
from .task import Evaluation, Outputs

log = logging.getLogger("isotrain")

THRESHOLD = "eval/null_threshold"


class QuestionAnsweringV2(QuestionAnswering):
    """Answers questions, some of which have no answer."""

    unanswerable = True
    name = "question_answering_v2"
    own_keys = ("null_threshold",)
    # Named as the official script names them.
    metrics: ClassVar = {
        "eval/loss": "loss",
        "eval/exact": "exact match",
        "eval/f1": "F1",
        "eval/HasAns_exact": "exact, answerable",
        "eval/HasAns_f1": "F1, answerable",
        "eval/NoAns_exact": "no answer",
        "eval/NoAns_f1": "F1, no answer",
        "eval/best_exact": "best exact",
        "eval/best_exact_thresh": "its threshold",
        "eval/best_f1": "best F1",
        "eval/best_f1_thresh": "F1's threshold",
        THRESHOLD: "used threshold",
    }

    def metrics_of(self, dataset: QuestionDataset) -> tuple[str, ...]:
        """All metrics, but those of questions with or without an answer only if there are some."""
        given = dataset.test.answers
        lacking = [name for name, there in (("HasAns", any(given)), ("NoAns", not all(given))) if not there]
        return tuple(name for name in self.metrics if not any(part in name for part in lacking))

    def judge(
        self, dataset: QuestionDataset, store: TokenStore, outputs: Outputs, loss: float, config: TrainConfig
    ) -> Evaluation:
        """Mean loss per window and the official figures, which are also in eval.json, with the numbers of questions.

        Also SQuAD's prediction file, in which no answer is "", by how much no answer scores more than the best span
        (null_odds.json, as the official script takes it), and the n best answers.
        """
        split = dataset.test
        found = dict(zip(split.ids, found_in(split.contexts, store, outputs, config), strict=True))
        given = {name: [answer.text for answer in known] for name, known in zip(split.ids, split.answers, strict=True)}
        spans = {name: answers.spans[0].text if answers.spans else "" for name, answers in found.items()}
        odds = {name: answers.odds for name, answers in found.items()}
        score = score_v2(spans, given, odds, config.null_threshold)
        threshold = _beside(score.best_f1.threshold, odds.values())
        settled = self.settled(config, {THRESHOLD: threshold})
        best = {name: self.best_first(answers, settled) for name, answers in found.items()}
        figures = score.figures()
        metrics = {f"eval/{name}": value for name, value in figures.items() if f"eval/{name}" in self.metrics}
        assert settled.null_threshold is not None, "settled"
        return Evaluation(
            {"eval/loss": loss, **metrics, THRESHOLD: settled.null_threshold},
            {
                "eval.json": figures,
                "predictions.json": {name: ordered[0].text for name, ordered in best.items()},
                "null_odds.json": odds,
                "nbest_predictions.json": {name: described(ordered) for name, ordered in best.items()},
            },
        )

    def chance_loss(self, store: TokenStore) -> float:
        """The loss in nats of a model that knows only how many windows have no answer.

        It points at [CLS] with that probability, and else at all other tokens equally.
        """
        empty = store.labels[:, 1] == 0
        share = float(empty.mean())
        with_answer = np.log(self._tokens(store)[~empty] - 1) - math.log(1.0 - share) if share < 1.0 else np.zeros(0)
        return float(with_answer.sum() - empty.sum() * math.log(share or 1.0)) / len(empty)

    def settled(self, config: TrainConfig, metrics: Mapping[str, float]) -> TrainConfig:
        if config.null_threshold is not None:
            return config
        if THRESHOLD not in metrics:
            log.warning("no evaluation of these weights has found a threshold for no answer: it is 0")
        return config.model_copy(update={"null_threshold": metrics.get(THRESHOLD, 0.0)})

    def best_first(self, answers: Answers, config: TrainConfig) -> list[Span]:
        """The spans and no answer, the given one first, then by score."""
        assert config.null_threshold is not None, "settled before"
        ranked = sorted([*answers.spans, answers.null], key=lambda span: -span.score)
        given = answers.null if not answers.spans or answers.odds > config.null_threshold else answers.spans[0]
        return [given, *(span for span in ranked if span is not given)]


def _beside(threshold: float, odds: Iterable[float]) -> float:
    """The middle between `threshold`, which is a question's own odds, and the next higher odds.

    It gives the same answers, and rounding doesn't change them.
    """
    return (threshold + min((other for other in odds if other > threshold), default=threshold)) / 2
