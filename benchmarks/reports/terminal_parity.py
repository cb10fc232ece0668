"""A comparison's result for people: one table, the reasons, what must be known beside it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...kernels.words import count
from ..outcome.parity import Candidate, Equivalence, Judged, Parity, Seeds
from .fit import fitted

STYLES = {"pass": "green", "drift": "yellow", "diverged": "red", "refused": "red", "failed": "red"}


def print_parity(result: Parity, console: Console) -> None:
    """`result` as text."""
    reference = result.reference
    console.print(
        Text(f"isotrain parity: {count(result.steps, 'step')} against {reference.label} ({reference.device})")
    )
    weights = " (random weights)" if reference.random_weights else ""
    model = reference.model if weights.strip() in reference.model else reference.model + weights
    console.print(Text(f"model {model}; data {reference.dataset}; same weights and batches for all, hashes compared"))
    for note in result.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    console.print(fitted(_table(result), console))
    for candidate in result.candidates:
        if candidate.policy is not None:
            console.print(Text(f"{candidate.label}: {_described(candidate)}", style="dim"))
        for reason in candidate.reasons:
            console.print(Text(f"{candidate.label}: {reason}"))
    if result.seeds:
        console.print(fitted(_seeds(result.seeds), console))


def _table(result: Parity) -> Table:
    table = Table(title="loss parity", title_justify="left")
    table.add_column("candidate")
    table.add_column("verdict")
    table.add_column("error /\nallowed", justify="right")
    table.add_column("largest in")
    table.add_column("first\nstep", justify="right")
    table.add_column("first outside")
    for name in ("loss\nrel. L2", "logits\nrel. L2", "logits\nmax abs", "PCC", "last figure\n(reference)"):
        table.add_column(name, justify="right")
    for candidate in result.candidates:
        table.add_row(*map(Text, _row(candidate)), style=STYLES[candidate.verdict])
    return table


def _row(candidate: Candidate) -> list[str]:
    if not isinstance(candidate, Judged):
        return [candidate.label, candidate.verdict, *["-"] * 9]
    probe = candidate.probe
    # Results of earlier versions have no checks.
    largest = max(candidate.checks, key=lambda one: float("inf") if one.ratio is None else one.ratio, default=None)
    cause = f" ({candidate.cause})" if candidate.cause else ""
    return [
        candidate.label,
        candidate.verdict,
        "not finite" if candidate.worst is None else f"{candidate.worst:.2g}",
        "-" if largest is None else largest.quantity,
        "-" if candidate.first_step is None else str(candidate.first_step),
        (candidate.place or "-") + cause,
        _small(candidate.relative_l2.loss),
        _small(probe.relative_l2),
        _small(probe.max_abs),
        "-" if probe.pcc is None else f"{probe.pcc:.6f}",
        _figure(candidate.metrics[-1].main if candidate.metrics else None),
    ]


def _described(candidate: Candidate) -> str:
    measured = ""
    if isinstance(candidate, Judged):
        measured = f"; measured by {candidate.error_budget}, {count(candidate.draws, 'draw')}"
    return f"{candidate.device}, {candidate.policy}, kernel {candidate.kernel}{measured}"


def _small(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _figure(main: tuple[str, float | None, float | None] | None) -> str:
    """A figure of the last evaluation, and the reference's."""
    if main is None:
        return "-"
    name, *values = main
    found, expected = ("not finite" if value is None else f"{value:.4f}" for value in values)
    return f"{name} {found} ({expected})"


def _seeds(seeds: Seeds) -> Table:
    title = f"final {seeds.metric} over {seeds.n} seeds: equivalent within {seeds.margin:g}?"
    table = Table(title=title, title_justify="left")
    table.add_column("candidate")
    table.add_column("mean difference", justify="right")
    table.add_column("90 % interval", justify="right")
    table.add_column("verdict")
    for one in seeds.candidates:
        table.add_row(*map(Text, _test(one)))
    return table


def _test(one: Equivalence) -> list[str]:
    if one.difference is None or one.low is None or one.high is None:
        return [one.label, "-", "-", f"{one.verdict}: {one.reason}"]
    return [one.label, f"{one.difference:+.4f}", f"{one.low:+.4f} to {one.high:+.4f}", one.verdict]
