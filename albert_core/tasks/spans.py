"""The n best answers of a question, from the start and end logits of all its windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Span:
    """A part of a context: ``context[begin:end] == text``. `score` is its start logit plus its end logit."""

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
    """One window's logits, float32 [tokens] each, and the characters its tokens stand for, int [tokens, 2]; -1 where a
    token is none of the context's.
    """

    start: np.ndarray
    end: np.ndarray
    spans: np.ndarray


def best_spans(context: str, windows: Sequence[WindowLogits], n_best: int, max_tokens: int) -> list[Span]:
    """The `n_best` spans of `context` with the highest scores, best first; fewer where there are fewer.

    A span begins and ends with a token of one window, takes at most `max_tokens` of them, and has no white space at its
    ends. What several windows or tokens hold counts once, by its best score; of equal scores the earlier and shorter
    comes first. All spans are looked at, not only those that pair the best starts with the best ends.
    """
    found: dict[tuple[int, int], Span] = {}
    for window in windows:
        for span in _of_window(context, window, n_best, max_tokens):
            known = found.get((span.begin, span.end))
            if known is None or span.score > known.score:
                found[span.begin, span.end] = span
    return sorted(found.values(), key=lambda span: (-span.score, span.begin, span.end))[:n_best]


def probabilities(spans: Sequence[Span]) -> list[float]:
    """The softmax of the spans' scores among themselves; none of none."""
    if not spans:
        return []
    scores = np.array([span.score for span in spans])
    weights = np.exp(scores - scores.max())
    return [float(weight) for weight in weights / weights.sum()]


def _of_window(context: str, window: WindowLogits, n_best: int, max_tokens: int) -> list[Span]:
    """A window's `n_best` different spans, and those that score as much as the last of them."""
    positions = np.flatnonzero(window.spans[:, 0] >= 0)
    if not len(positions):
        return []
    spans = window.spans[positions]
    blank = np.array([not context[begin:end].strip() for begin, end in spans], dtype=bool)
    start, end = (np.where(blank, -np.inf, part[positions].astype(np.float64)) for part in (window.start, window.end))
    # Row i, column k: from token i to token i + k, as far as there are tokens.
    behind = np.concatenate((end, np.full(max_tokens - 1, -np.inf)))
    scores = (start[:, None] + np.lib.stride_tricks.sliding_window_view(behind, max_tokens)).ravel()
    possible = int(np.isfinite(scores).sum())
    found: dict[tuple[int, int], Span] = {}
    taken = n_best
    # Several tokens may stand for one character ("½"), and so several of these for one span: then more are looked at.
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
    """The span without the white space that some tokens stand for too."""
    text = context[begin:end]
    first, last = int(end) - len(text.lstrip()), int(begin) + len(text.rstrip())
    return Span(context[first:last], first, last, float(start_logit), float(end_logit))
