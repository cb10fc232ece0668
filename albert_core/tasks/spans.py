"""The n best answers of a question, from the start and end logits of all its windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Span:
    """A part of a context: ``context[begin:end] == text``. `score` is the sum of its start and end logits."""

    text: str
    begin: int
    end: int
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit


@dataclass(frozen=True)
class WindowLogits:
    """The start and end logits of one window, float32 [tokens] each.

    `spans` holds the characters of each token, int [tokens, 2], or -1 if the token is not part of the context.
    """

    start: np.ndarray
    end: np.ndarray
    spans: np.ndarray


def best_spans(context: str, windows: Sequence[WindowLogits], n_best: int, max_tokens: int) -> list[Span]:
    """Finds the `n_best` spans of `context` with the highest scores, best first. There may be fewer.

    A span begins and ends with a token of one window, has at most `max_tokens` tokens, and no white space at its ends.
    A span that several windows or tokens yield counts once, with its best score. If scores are equal, the earlier and
    shorter span comes first. All pairs of tokens are considered, not only the best starts with the best ends.
    """
    found: dict[tuple[int, int], Span] = {}
    for window in windows:
        for span in _of_window(context, window, n_best, max_tokens):
            known = found.get((span.begin, span.end))
            if known is None or span.score > known.score:
                found[span.begin, span.end] = span
    return sorted(found.values(), key=lambda span: (-span.score, span.begin, span.end))[:n_best]


@dataclass(frozen=True)
class Answers:
    """The best spans of a context, best first, and `null`, which scores the answer that there is none.

    As in Devlin et al. 2018, it is an empty span at [CLS], from the window where that scores least.
    """

    spans: list[Span]
    null: Span

    @property
    def odds(self) -> float:
        """How much `null` scores more than the best span. Without a span, which is no answer either, its own score."""
        return self.null.score - self.spans[0].score if self.spans else self.null.score


def found_answers(context: str, windows: Sequence[WindowLogits], n_best: int, max_tokens: int) -> Answers:
    """`best_spans` of a context, and the score of no answer."""
    nulls = [Span("", 0, 0, float(window.start[0]), float(window.end[0])) for window in windows]
    return Answers(best_spans(context, windows, n_best, max_tokens), min(nulls, key=lambda null: null.score))


def probabilities(spans: Sequence[Span]) -> list[float]:
    """The softmax over the scores of `spans`, or an empty list without spans."""
    if not spans:
        return []
    scores = np.array([span.score for span in spans])
    weights = np.exp(scores - scores.max())
    return [float(weight) for weight in weights / weights.sum()]


def _of_window(context: str, window: WindowLogits, n_best: int, max_tokens: int) -> list[Span]:
    """The `n_best` different spans of a window, and any that score as much as the last of them."""
    positions = np.flatnonzero(window.spans[:, 0] >= 0)
    if not len(positions):
        return []
    spans = window.spans[positions]
    blank = np.array([not context[begin:end].strip() for begin, end in spans], dtype=bool)
    start, end = (np.where(blank, -np.inf, part[positions].astype(np.float64)) for part in (window.start, window.end))
    # Row i, column k: from token i to token i + k, or -inf beyond the last token.
    behind = np.concatenate((end, np.full(max_tokens - 1, -np.inf)))
    scores = (start[:, None] + np.lib.stride_tricks.sliding_window_view(behind, max_tokens)).ravel()
    possible = int(np.isfinite(scores).sum())
    found: dict[tuple[int, int], Span] = {}
    taken = n_best
    # Several tokens may stand for one character ("½"), so several pairs may be one span. Then more pairs are needed.
    while possible and len(found) < n_best:
        least = np.partition(scores, -min(taken, possible))[-min(taken, possible)]
        for place in np.flatnonzero(scores >= least):
            first, further = divmod(int(place), max_tokens)
            span = _span(context, spans[first, 0], spans[first + further, 1], start[first], end[first + further])
            known = found.get((span.begin, span.end))
            if known is None or span.score > known.score:
                found[span.begin, span.end] = span
        if taken >= possible:
            break
        taken *= 2
    return list(found.values())


def _span(context: str, begin: int, end: int, start_logit: float, end_logit: float) -> Span:
    """The span without white space at its ends, which some tokens include."""
    text = context[begin:end]
    first, last = int(end) - len(text.lstrip()), int(begin) + len(text.rstrip())
    return Span(context[first:last], first, last, float(start_logit), float(end_logit))
