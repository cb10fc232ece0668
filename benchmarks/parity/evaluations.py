"""How far an evaluation's figures may be off: by what the logits' allowed error does to a loss, and to whole answers.

The reference's logits of the probe texts say how near its answers are to others, and so how many of all rows could get
another one. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .bands import Check, floor
from .trace import Trace

# A row's loss is a logit less a mean of logits: both are off.
DIFFERENCE = math.sqrt(2.0)
# More answers than this chance leaves are no luck.
CHANCE = 1e-4
# The share of the probe rows, those with the nearest answers, that tells how many answers are nearer still.
NEAREST = 8


def moves(rows: int, questions: int | None, label_counts: Sequence[int]) -> dict[str, float]:
    """By how much one changed answer can move each figure of an evaluation, at most.

    rows: texts or windows; questions: of question answering, whose figures are percentages of them.
    label_counts: how often each label occurs in the split.
    """
    if questions is not None:
        return {"exact_match": 100.0 / questions, "f1": 100.0 / questions}
    counts = np.asarray(label_counts)
    # F1 is 2 TP / (occurs + told): an answer more or less of one label moves it by 2 / occurs at most. It changes the
    # F1 of two labels of macro-F1's mean, and that of an absent label comes or goes with it.
    least = min(1.0, 2.0 / max(1, int(counts.min())))
    return {
        "accuracy": 1.0 / rows,
        "largest_share": 1.0 / rows,
        "f1": min(1.0, 2.0 / max(1, int(counts[1]))) if len(counts) > 1 else 1.0,
        "f1_macro": min(1.0, 2.0 * least / max(1, int((counts > 0).sum()))),
    }


def metric_checks(reference: Trace, candidate: Trace, logits_allowed: Sequence[float]) -> list[Check]:
    """A check for each figure of each evaluation. logits_allowed: the band of the logits' root mean square error, [E].

    The loss of rows is off by no more than their logits; any other figure by whole answers.
    """
    checks = []
    for index, (ours, theirs) in enumerate(
        zip(reference.header.metrics, candidate.header.metrics, strict=True), start=1
    ):
        allowed = logits_allowed[index - 1]
        answers = _possible_changes(reference, reference.probe_logits[index], allowed)
        for name, exact in ours.figures.items():
            band = DIFFERENCE * allowed if name == "loss" else answers * _move(reference, name)
            error = abs(theirs.figures[name] - exact)
            checks.append(Check(f"the evaluation's {name}", ours.step, error, band + floor(abs(exact))))
    return checks


def accuracy_check(reference: Trace, candidate: Trace, logits_allowed: Sequence[float]) -> list[Check]:
    """Whether training classified as many samples correctly, step by step; none where a trace has no such series.

    logits_allowed: the band of the logits' error before the first step and after each evaluation, [E + 1].
    """
    if "right" not in reference.arrays or "right" not in candidate.arrays:
        return []
    shares = [
        _share_of_changes(_margins(logits), allowed)
        for logits, allowed in zip(reference.probe_logits, logits_allowed, strict=True)
    ]
    texts = np.cumsum(reference.header.batch_sizes or [])
    changed = np.cumsum(np.abs(candidate.arrays["right"] - reference.arrays["right"]))
    allowed = [most_likely(max(shares) * float(count)) for count in texts]
    return [
        Check("training's right answers so far", step, float(wrong), float(most) + 0.5)
        for step, (wrong, most) in enumerate(zip(changed, allowed, strict=True), start=1)
    ]


def most_likely(mean: float) -> int:
    """The smallest number that a Poisson variable of this mean exceeds by no more than `CHANCE`."""
    if mean > 100.0:
        return math.ceil(mean + 4.0 * math.sqrt(mean))
    term = total = math.exp(-mean)
    number = 0
    while 1.0 - total > CHANCE:
        number += 1
        term *= mean / number
        total += term
    return number


def _possible_changes(reference: Trace, logits: np.ndarray, allowed: float) -> int:
    """How many of the evaluation's rows could get another answer where logits are off by `allowed`."""
    split = reference.header.evaluation
    rows = len(logits) if split is None else split.rows
    return min(rows, most_likely(rows * _share_of_changes(_margins(logits), allowed)))


def _move(reference: Trace, name: str) -> float:
    """What one answer can move the figure `name` by. A trace that doesn't say so has at least its probe texts."""
    known = {} if reference.header.evaluation is None else reference.header.evaluation.moves
    return known.get(name, 2.0 / reference.probe_logits.shape[1])


def _margins(logits: np.ndarray) -> np.ndarray:
    """By how much each row's largest logit exceeds the next.

    [P] of logits [P, C]; of spans' logits [P, L, 2] for each of both ends [P, 2].
    """
    # Recording puts 0 in the place of padding, which is no answer.
    known = np.where(logits == 0.0, -np.inf, logits) if logits.ndim == 3 else logits
    largest = np.sort(np.moveaxis(known, 1, -1), axis=-1)[..., -2:]
    return np.asarray(largest[..., 1] - largest[..., 0])


def _share_of_changes(margins: np.ndarray, allowed: float) -> float:
    """The expected share of rows whose answer changes where each logit is off by `allowed`, normally distributed.

    Where that is small beside all margins, few rows say nothing: the nearest ones tell how dense answers are.
    """
    spread = DIFFERENCE * allowed
    flat = np.sort(margins[np.isfinite(margins)].ravel())
    if not spread or not flat.size:
        return 0.0
    direct = float(np.mean([0.5 * math.erfc(margin / spread / DIFFERENCE) for margin in flat]))
    place = min(len(flat) - 1, len(flat) // NEAREST)
    density = (place + 1) / len(flat) / max(float(flat[place]), 1e-300)
    # A row has one answer, or one at each of its two ends.
    answers = margins.ndim
    return min(1.0, answers * max(direct, min(1.0, density * spread / math.sqrt(2.0 * math.pi))))
