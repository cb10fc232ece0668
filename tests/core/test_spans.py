"""The decoder against one that tries every span of every window."""

from __future__ import annotations

import math

import numpy as np
import pytest
from isotrain.albert_core.tasks.spans import WindowLogits, best_spans, probabilities

CONTEXT = "Anna's  oil-lamp stood in the north tower, ½ empty; Boris found it there ..."


def every_span(context: str, windows: list[WindowLogits], max_tokens: int) -> list[tuple[float, int, int]]:
    """(score, begin, end) of all spans, best first: the definition, spelled out."""
    best: dict[tuple[int, int], float] = {}
    for window in windows:
        for first in range(len(window.spans)):
            for last in range(first, min(first + max_tokens, len(window.spans))):
                (begin, begin_stop), (end_begin, end) = window.spans[first].tolist(), window.spans[last].tolist()
                if begin < 0 or end < 0 or not context[begin:begin_stop].strip() or not context[end_begin:end].strip():
                    continue
                while context[begin].isspace():
                    begin += 1
                while context[end - 1].isspace():
                    end -= 1
                score = float(window.start[first]) + float(window.end[last])
                best[begin, end] = max(score, best.get((begin, end), -math.inf))
    return sorted(((score, *where) for where, score in best.items()), key=lambda item: (-item[0], item[1], item[2]))


def tokens(generator: np.random.Generator, begin: int, end: int) -> np.ndarray:
    """A tokenisation of part of the context: pieces of 1 to 5 characters, some doubled, some with the space before."""
    spans = []
    while begin < end:
        stop = min(end, begin + int(generator.integers(1, 6)))
        spans += [(begin, stop)] * int(generator.choice([1, 1, 1, 2]))
        begin = stop
    return np.array([(-1, -1)] * 4 + spans + [(-1, -1)] * 3)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize(("n_best", "max_tokens"), [(20, 30), (1, 1), (7, 4), (2000, 200)])
def test_the_best_spans_are_those_of_a_search_through_all(seed: int, n_best: int, max_tokens: int) -> None:
    generator = np.random.Generator(np.random.PCG64(seed))
    cut = int(generator.integers(20, 50))
    windows = []
    for begin, end in ((0, cut), (max(0, cut - 15), len(CONTEXT))):
        spans = tokens(generator, begin, end)
        # Rounded, so that many spans score the same.
        start, last = (np.round(generator.normal(size=len(spans)), 1).astype(np.float32) for _ in range(2))
        # Positions that are none of the context's must not win, whatever they score.
        start[:3], last[-2:] = 50.0, 50.0
        windows.append(WindowLogits(start, last, spans))
    found = best_spans(CONTEXT, windows, n_best, max_tokens)
    wanted = every_span(CONTEXT, windows, max_tokens)[:n_best]
    assert [(span.score, span.begin, span.end) for span in found] == wanted
    for span in found:
        assert span.text == CONTEXT[span.begin : span.end] == span.text.strip()
    softmax = np.exp([span.score for span in found])
    assert probabilities(found) == pytest.approx((softmax / softmax.sum()).tolist())


def test_the_best_pair_is_found_where_the_best_starts_lie_behind_the_best_ends() -> None:
    # 20 starts at the end and 20 ends at the beginning score best, and none of them makes a span together.
    spans = np.array([(place, place + 1) for place in range(60)])
    start, end = np.zeros(60, np.float32), np.zeros(60, np.float32)
    start[40:], end[:20], end[39], start[25] = 5.0, 5.0, 4.0, 4.5
    (best,) = best_spans("x" * 60, [WindowLogits(start, end, spans)], 1, 30)
    assert (best.begin, best.end, best.score) == (25, 40, 8.5)


def test_a_window_without_context_or_with_nan_has_no_spans() -> None:
    nowhere = WindowLogits(np.ones(3, np.float32), np.ones(3, np.float32), np.full((3, 2), -1))
    assert best_spans("abc", [nowhere], 20, 30) == []
    unknown = WindowLogits(np.full(3, np.nan), np.ones(3), np.array([(0, 1), (1, 2), (2, 3)]))
    assert best_spans("abc", [unknown], 20, 30) == []
    assert probabilities([]) == []
