"""A parity result as blocks: one table, the reasons, what must be known beside it. Rules 12 to 14."""

from __future__ import annotations

from collections.abc import Callable

from ....kernels.words import count
from ...outcome.parity import Candidate, Equivalence, Judged, Parity
from ..blocks import Block, Column, Heading, Table, Words
from .labels import joined, titled

STYLES = {"pass": "green", "drift": "yellow", "diverged": "red", "refused": "red", "failed": "red"}


def parity_view(result: Parity) -> list[Block]:
    """Title, notes, a row a candidate, what each was computed as, and why it is not alike."""
    reference = result.reference
    weights = " (random weights)" if reference.random_weights else ""
    model = reference.model if weights.strip() in reference.model else reference.model + weights
    blocks: list[Block] = [
        Heading(f"isotrain parity: {count(result.steps, 'step')} against {reference.label} ({reference.device})"),
        Words(f"model {model}; data {reference.dataset}; same weights and batches for all, hashes compared"),
        *(Words(f"note: {note}", "yellow") for note in result.notes),
        _verdicts(result),
    ]
    for candidate in result.candidates:
        if candidate.policy is not None:
            blocks.append(Words(f"{candidate.label}: {_described(candidate)}", "dim"))
        blocks += [Words(f"{candidate.label}: {reason}") for reason in candidate.reasons]
    return blocks + seeds(result)


def parity_tags(result: Parity) -> list[str]:
    """What qualifies all figures of a parity result."""
    sides = [result.reference, *result.candidates]
    return [
        words
        for words, said in (
            ("random weights", any(side.random_weights for side in sides)),
            ("partial", result.status == "partial"),
        )
        if said
    ]


def verdict_style(candidate: Candidate) -> str:
    return STYLES[candidate.verdict]


def seeds(result: Parity) -> list[Table[Equivalence]]:
    """The final metric over several seeds, if they were run."""
    if result.seeds is None:
        return []
    tested = result.seeds
    columns = (
        Column[Equivalence]("candidate", lambda one: one.label, numeric=False),
        Column[Equivalence]("mean difference", lambda one: _signed(one.difference)),
        Column[Equivalence]("90 % interval", lambda one: joined([_signed(one.low), _signed(one.high)], " to ")),
        Column[Equivalence]("is", lambda one: joined([one.verdict, one.reason], ": "), numeric=False),
    )
    title = titled(
        f"Final {tested.metric} over {tested.n} seeds, equivalent within {tested.margin:g}", parity_tags(result)
    )
    return [Table(title, columns, tested.candidates, lambda one: "" if one.verdict == "equivalent" else "yellow")]


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


def _verdicts(result: Parity) -> Table[Candidate]:
    def of_judged(header: str, cell: Callable[[Judged], str], numeric: bool = True) -> Column[Candidate]:
        return Column(header, lambda one: cell(one) if isinstance(one, Judged) else "", numeric)

    columns = (
        Column[Candidate]("candidate", lambda one: one.label, numeric=False),
        Column[Candidate]("verdict", lambda one: one.verdict, numeric=False),
        of_judged("error / allowed", lambda one: "not finite" if one.worst is None else f"{one.worst:.2g}"),
        of_judged("largest in", _largest, numeric=False),
        of_judged("first step", lambda one: "" if one.first_step is None else str(one.first_step)),
        of_judged("first outside", _outside, numeric=False),
        of_judged("loss rel. L2", lambda one: _small(one.relative_l2.loss)),
        of_judged("output rel. L2", lambda one: _small(one.probe.relative_l2)),
        of_judged("output max abs", lambda one: _small(one.probe.max_abs)),
        of_judged("PCC", lambda one: "" if one.probe.pcc is None else f"{one.probe.pcc:.6f}"),
        of_judged("last figure (reference)", _last),
    )
    return Table(titled("Loss parity", parity_tags(result)), columns, result.candidates, verdict_style)


def _outside(candidate: Judged) -> str:
    """Where an error first left its band, and whether it arose there."""
    place = candidate.place or candidate.layer or ""
    return f"{place} ({candidate.cause})".strip() if candidate.cause else place


def _largest(candidate: Judged) -> str:
    # Results of earlier versions have no checks.
    checks = candidate.checks
    return max(checks, key=lambda one: float("inf") if one.ratio is None else one.ratio).quantity if checks else ""


def _described(candidate: Candidate) -> str:
    measured = ""
    if isinstance(candidate, Judged):
        measured = f"; measured by {candidate.error_budget}, {count(candidate.draws, 'draw')}"
    return f"{candidate.device}, {candidate.policy}, kernel {candidate.kernel}{measured}"


def _small(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _last(candidate: Judged) -> str:
    """A figure of the last evaluation, and the reference's."""
    main = candidate.metrics[-1].main if candidate.metrics else None
    if main is None:
        return ""
    name, *values = main
    found, expected = ("not finite" if value is None else f"{value:.4f}" for value in values)
    return f"{name} {found} ({expected})"
