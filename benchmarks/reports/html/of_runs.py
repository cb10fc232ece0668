"""What training runs say: their losses and evaluations by step, how they ended."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ....albert_core.output.charts import Axis, Line, LineChart, Point
from ....albert_core.terminal.text import number, precise
from ..blocks import Section, Table, figure_columns, word_columns
from .labels import titled
from .loading import Found, Results, Run
from .text import joined

NAMES = {
    "f1_macro": "macro-F1",
    "f1": "F1",
    "exact_match": "exact match",
    "largest_share": "largest label's share",
}


def training(results: Results, folded: bool) -> Section:
    """Losses and evaluations of all runs, over the same axes."""
    section = Section("training", "Training runs", folded=folded)
    runs = results.runs
    if not runs:
        return section
    section.blocks.append(_table(runs))
    losses = _lines(runs, [run.document.loss for run in runs])
    if losses:
        title, words = titled("Training loss", run_tags(runs)), "Mean over the steps since the last point."
        section.blocks.append(LineChart("training-loss", title, words, Axis("step"), Axis("loss"), losses))
    for metric in metrics(runs):
        lines = _lines(runs, [run.document.evaluations.get(metric, ()) for run in runs])
        if lines:
            title = titled(f"Evaluation: {said(metric)}", run_tags(runs))
            words, axes = "On the whole test split.", (Axis("step"), Axis(said(metric)))
            section.blocks.append(LineChart(f"evaluation-{metric}", title, words, *axes, lines, half=True))
    return section


def metrics(runs: Sequence[Found[Run]]) -> list[str]:
    """The figures that some run was evaluated by, the loss first."""
    found = {metric for run in runs for metric in run.document.evaluations}
    return sorted(found, key=lambda metric: (metric != "loss", metric))


def said(metric: str) -> str:
    """A figure's name as people write it."""
    return NAMES.get(metric, metric.replace("_", " "))


def run_tags(runs: Sequence[Found[Run]]) -> list[str]:
    """What holds for the figures of some run of them."""
    some = [run.path for run in runs if run.document.record.random_weights]
    if not some:
        return []
    return ["random weights" if len(some) == len(runs) else f"random weights in {', '.join(some)}"]


def run_name(run: Found[Run]) -> str:
    """The run's folder and what it ran on."""
    record = run.document.record
    return f"{run.path}, {record.device.backend} {record.cast_policy.label}"


def _lines(runs: Sequence[Found[Run]], curves: Sequence[tuple[Point, ...]]) -> tuple[Line, ...]:
    return tuple(
        Line(run_name(run), curve, style)
        for style, (run, curve) in enumerate(zip(runs, curves, strict=True))
        if any(value is not None for _, value in curve)
    )


def _table(runs: list[Found[Run]]) -> Table:
    known = metrics(runs)
    columns = (
        *word_columns("run", "model", "ended"),
        *figure_columns("steps", "train loss", *(f"eval {said(metric)}" for metric in known), "samples/s", "seconds"),
    )
    rows = tuple(_row(run, known) for run in runs)
    flagged = frozenset(index for index, run in enumerate(runs) if ended(run.document) != "completed")
    return Table(titled("Runs", run_tags(runs)), columns, rows, flagged)


def ended(run: Run) -> str:
    """How a run ended, in the words of its summary."""
    return "not ended" if run.summary is None else run.summary.status


def _row(run: Found[Run], known: Sequence[str]) -> tuple[str, ...]:
    document = run.document
    record, summary = document.record, document.summary
    steps = max((step for step, _ in document.loss), default=0.0)
    rates = document.samples_per_second
    measured = number(median(rates)) if rates else ""
    speed = measured if record.device.real else "none (emulated)"
    return (
        run_name(run),
        record.model,
        ended(document),
        f"{steps:,.0f}" if summary is None else f"{summary.step:,} of {summary.total_steps:,}",
        _last(document.loss),
        *(_last(document.evaluations.get(metric, ())) for metric in known),
        speed,
        "" if summary is None or summary.seconds is None else number(summary.seconds),
    )


def _last(curve: tuple[Point, ...]) -> str:
    return precise(next((value for _, value in reversed(curve) if value is not None), None))


def outcome(run: Found[Run]) -> str:
    """How a run ended, and what it reached in its last evaluation."""
    reached = [
        f"{said(metric)} {values[-1]:.4f}"
        for metric in metrics([run])
        if (values := [value for _, value in run.document.evaluations[metric] if value is not None])
    ]
    return joined([ended(run.document), ", ".join(reached), *run_tags([run])])
