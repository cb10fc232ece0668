"""How far an evaluation's figures may differ, given the allowed error of the logits.

The loss may differ as much as the logits. Other figures may differ by whole answers: the margins of the reference's
logits on the probe texts show how many rows could get another answer. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .bands import LARGEST_FACTOR, Check, floor
from .trace import Trace

# A row's loss is a logit minus a mean of logits, and both have an error.
DIFFERENCE = math.sqrt(2.0)
# The probability that chance alone changes more answers than allowed.
CHANCE = 1e-4
# One in so many probe rows, those with the smallest margins, give the density of margins near 0.
NEAREST = 8


def moves(rows: int, label_counts: Sequence[int]) -> dict[str, float]:
    """How much one changed answer can change each figure of an evaluation at most.

    Args:
        rows: The texts.
        label_counts: How often each label occurs in the split.
    """
    counts = np.asarray(label_counts)
    # F1 is 2 TP / (occurrences + predictions), so one answer of a label changes it by 2 / occurrences at most. It
    # changes the F1 of two labels in the mean of macro-F1, and may add or remove the F1 of an absent label.
    least = min(1.0, 2.0 / max(1, int(counts.min())))
    return {
        "accuracy": 1.0 / rows,
        "largest_share": 1.0 / rows,
        "f1": min(1.0, 2.0 / max(1, int(counts[1]))) if len(counts) > 1 else 1.0,
        "f1_macro": min(1.0, 2.0 * least / max(1, int((counts > 0).sum()))),
    }


def question_moves(answered: Sequence[bool]) -> dict[str, float]:
    """The same for percentages of questions, and of those with (`answered`) and without an answer."""
    share = 100.0 / len(answered)
    parts = (("HasAns", sum(answered)), ("NoAns", len(answered) - sum(answered)))
    return {
        **dict.fromkeys(("exact_match", "exact", "f1", "best_exact", "best_f1"), share),
        **{f"{part}_{figure}": 100.0 / rows for part, rows in parts if rows for figure in ("exact", "f1")},
    }


def set_moves(rows: int, label_counts: Sequence[float]) -> dict[str, float]:
    """The same for sets of labels, where an answer is whether a row has one label."""
    counts = np.maximum(1.0, label_counts)
    return {
        "accuracy": 1.0 / rows,
        "f1_micro": min(1.0, 2.0 / float(counts.sum())),
        "f1_macro": min(1.0, 2.0 / float(counts.min())) / len(counts),
    }


def number_moves(rows: int) -> dict[str, float]:
    """The same for numbers. Of these, only ranks change by leaps, if two neighbours exchange theirs."""
    return {"pearsonr": 0.0, "rmse": 0.0, "spearmanr": min(2.0, 12.0 / rows**2)}


def metric_checks(reference: Trace, candidate: Trace, logits_allowed: Sequence[float]) -> list[Check]:
    """A check for each figure of each evaluation. The loss may differ as much as the logits, others by whole answers.

    Args:
        logits_allowed: The band of the logits' root mean square error for each evaluation, [E].
    """
    checks = []
    for index, (ours, theirs) in enumerate(
        zip(reference.header.metrics, candidate.header.metrics, strict=True), start=1
    ):
        allowed = logits_allowed[index - 1]
        logits = reference.probe_logits[index]
        answers = _possible_changes(reference, logits, allowed)
        bands = _number_bands(ours.figures["loss"], logits, allowed) if _answer(reference) == "number" else {}
        for name, exact in ours.figures.items():
            leaps = DIFFERENCE * allowed if name == "loss" else answers * _move(reference, name)
            band = bands.get(name, leaps)
            error = abs(theirs.figures[name] - exact)
            checks.append(Check(f"the evaluation's {name}", ours.step, error, band + floor(abs(exact))))
    return checks


def loss_checks(
    reference: Trace, candidate: Trace, error_budgets: Sequence[Trace], m: float, loss_allowed: Sequence[float]
) -> list[Check]:
    """A check for each figure of each evaluation of a user's own module.

    Only the loss is judged: nobody knows by how much one answer changes other figures, so they are allowed anything.
    The loss is a single number, so it may be off by as much as a largest error: by that of the error budgets, or of
    the training loss at this step, relative to both losses.

    Args:
        loss_allowed: The band of each step's training loss.
    """
    checks = []
    for index, (ours, theirs) in enumerate(zip(reference.header.metrics, candidate.header.metrics, strict=True)):
        drawn = max(abs(error_budget.header.metrics[index].loss - ours.loss) for error_budget in error_budgets)
        step = max(ours.step, 1) - 1
        larger = max(1.0, abs(ours.loss) / max(abs(float(reference.loss[step])), 1e-300))
        allowed = LARGEST_FACTOR * max(m * drawn, loss_allowed[step] * larger) + floor(abs(ours.loss))
        for name, exact in ours.figures.items():
            error = abs(theirs.figures[name] - exact)
            checks.append(
                Check(f"the evaluation's {name}", ours.step, error, allowed if name == "loss" else float("inf"))
            )
    return checks


def accuracy_check(reference: Trace, candidate: Trace, logits_allowed: Sequence[float]) -> list[Check]:
    """Checks for each step how many samples training has classified correctly; none if a trace has no such series.

    Args:
        logits_allowed: The band of the logits' error before the first step and for each evaluation, [E + 1].
    """
    if "right" not in reference.arrays or "right" not in candidate.arrays or _answer(reference) == "number":
        return []
    shares = [
        _changes_of_a_row(reference, logits, allowed)
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
    """The smallest number that a Poisson variable of this mean exceeds with a probability of at most `CHANCE`."""
    if mean > 100.0:
        return math.ceil(mean + 4.0 * math.sqrt(mean))
    term = total = math.exp(-mean)
    number = 0
    while 1.0 - total > CHANCE:
        number += 1
        term *= mean / number
        total += term
    return number


def _answer(reference: Trace) -> str:
    """What an answer of the reference's task is."""
    return "largest" if reference.header.evaluation is None else reference.header.evaluation.answer


def _number_bands(loss: float, logits: np.ndarray, allowed: float) -> dict[str, float]:
    """How much the figures of numbers may differ if these have a root mean square error of `allowed`.

    Args:
        loss: The reference's mean squared error.
        logits: The reference's numbers for the probe texts, [P, k].
    """
    # A unit vector changes by twice the relative error of the centred numbers at most.
    relative = allowed / max(float(logits.std(axis=0).min()), 1e-300)
    return {"loss": allowed * (2.0 * math.sqrt(loss) + allowed), "rmse": allowed, "pearsonr": min(2.0, 2.0 * relative)}


def _possible_changes(reference: Trace, logits: np.ndarray, allowed: float) -> int:
    """How many answers of the evaluation could change if logits have the error `allowed`.

    Of numbers, how many neighbours could exchange their ranks.
    """
    split = reference.header.evaluation
    rows = len(logits) if split is None else split.rows
    if _answer(reference) == "number":
        # The expected number of pairs of normal numbers that are nearer to each other than their errors.
        relative = DIFFERENCE * allowed / max(float(logits.std(axis=0).min()), 1e-300)
        return most_likely(min(1.0, relative / math.sqrt(4.0 * math.pi)) * rows**2)
    each = logits.shape[1] if _answer(reference) == "above" else 1
    return min(rows * each, most_likely(rows * _changes_of_a_row(reference, logits, allowed)))


def _changes_of_a_row(reference: Trace, logits: np.ndarray, allowed: float) -> float:
    """The expected number of answers of a row that change if logits have the error `allowed`."""
    split = reference.header.evaluation
    if split is not None and split.answer == "above":
        return logits.shape[1] * _share_of_changes(np.abs(logits - split.boundary).ravel(), allowed)
    return _share_of_changes(_margins(logits), allowed)


def _move(reference: Trace, name: str) -> float:
    """How much one answer can change the figure `name`, estimated from the probe texts if the trace doesn't say."""
    known = {} if reference.header.evaluation is None else reference.header.evaluation.moves
    return known.get(name, 2.0 / reference.probe_logits.shape[1])


def _margins(logits: np.ndarray) -> np.ndarray:
    """How much each row's largest logit exceeds the next.

    Args:
        logits: [P, C], or for spans [P, L, 2].

    Returns:
        [P], or for both ends of spans [P, 2].
    """
    # Recording sets the logits of padding, which is no answer, to 0.
    known = np.where(logits == 0.0, -np.inf, logits) if logits.ndim == 3 else logits
    largest = np.sort(np.moveaxis(known, 1, -1), axis=-1)[..., -2:]
    return np.asarray(largest[..., 1] - largest[..., 0])


def _share_of_changes(margins: np.ndarray, allowed: float) -> float:
    """The expected share of rows whose answer changes if each logit has a normal error of `allowed`.

    If that is smaller than all margins, the smallest margins are used to estimate their density near 0.
    """
    spread = DIFFERENCE * allowed
    flat = np.sort(margins[np.isfinite(margins)].ravel())
    if not spread or not flat.size:
        return 0.0
    direct = float(np.mean([0.5 * math.erfc(margin / spread / DIFFERENCE) for margin in flat]))
    place = min(len(flat) - 1, len(flat) // NEAREST)
    density = (place + 1) / len(flat) / max(float(flat[place]), 1e-300)
    # A row has one answer, or one for each end of its span.
    answers = margins.ndim
    return min(1.0, answers * max(direct, min(1.0, density * spread / math.sqrt(2.0 * math.pi))))
