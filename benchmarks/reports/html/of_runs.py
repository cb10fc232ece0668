"""Training runs: losses and evaluations by step, and how they ended."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ....albert_core.output.charts import Axis, Line, LineChart, Point
from ....albert_core.terminal.text import figure, precise
from ..blocks import Column, Section, Table
from ..views.labels import joined, titled
from ..views.profile import profile_view
from .loading import Found, Results, Run

NAMES = {
    "exact_match": "exact match",
    "f1": "F1",
    "f1_macro": "macro-F1",
    "f1_micro": "micro-F1",
    "largest_share": "largest label's share",
    "rmse": "RMSE",
}


def training(results: Results, folded: bool) -> Section:
    """Losses and evaluations of all runs on the same axes."""
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
            name = said(metric, runs)
            title = titled(f"Evaluation: {name}", run_tags(runs))
            words = "" if _is_own(metric, runs) else "On the whole test split."
            axes = (Axis("step"), Axis(name))
            section.blocks.append(LineChart(f"evaluation-{metric}", title, words, *axes, lines, half=True))
    for run in runs:
        for profile in run.document.profiles:
            section.blocks.extend(profile_view(profile, f"to step {profile.step:,} of {run.path}, {profile.device}"))
    return section


def metrics(runs: Sequence[Found[Run]]) -> list[str]:
    """The figures of all evaluations, the loss first."""
    found = {metric for run in runs for metric in run.document.evaluations}
    return sorted(found, key=lambda metric: (metric != "loss", metric))


def said(metric: str, runs: Sequence[Found[Run]]) -> str:
    """A figure's usual name. Those of a user's own module keep theirs."""
    return metric if _is_own(metric, runs) else NAMES.get(metric, metric.replace("_", " "))


def _is_own(metric: str, runs: Sequence[Found[Run]]) -> bool:
    """Whether one of the runs has the figure from a user's own module."""
    return any(run.document.record.workload and metric in run.document.evaluations for run in runs)


def run_tags(runs: Sequence[Found[Run]]) -> list[str]:
    """What qualifies the figures of some of the runs."""
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


def _table(runs: list[Found[Run]]) -> Table[Found[Run]]:
    def evaluated(metric: str) -> Column[Found[Run]]:
        return Column(f"eval {said(metric, runs)}", lambda run: _last(run.document.evaluations.get(metric, ())))

    columns: tuple[Column[Found[Run]], ...] = (
        Column("run", run_name, numeric=False),
        Column("model", lambda run: run.document.record.model, numeric=False),
        Column("ended", lambda run: ended(run.document), numeric=False),
        Column("steps", _steps),
        Column("train loss", lambda run: _last(run.document.loss)),
        *map(evaluated, metrics(runs)),
        Column("samples/s", _speed),
        Column("seconds", _seconds),
    )
    return Table(titled("Runs", run_tags(runs)), columns, runs, _style)


def _style(run: Found[Run]) -> str:
    return "" if ended(run.document).startswith("completed") else "yellow"


def _steps(run: Found[Run]) -> str:
    summary = run.document.summary
    if summary is None:
        return f"{max((step for step, _ in run.document.loss), default=0.0):,.0f}"
    return f"{summary.step:,} of {summary.total_steps:,}"


def _speed(run: Found[Run]) -> str:
    rates = run.document.samples_per_second
    if not run.document.record.device.real:
        return "none (emulated)"
    return figure(median(rates)) if rates else ""


def _seconds(run: Found[Run]) -> str:
    summary = run.document.summary
    return "" if summary is None or summary.seconds is None else figure(summary.seconds)


def ended(run: Run) -> str:
    """How a run ended, from its summary."""
    if run.summary is None:
        return "not ended"
    return f"{run.summary.status} early" if run.summary.early_stop else run.summary.status


def _last(curve: tuple[Point, ...]) -> str:
    return precise(next((value for _, value in reversed(curve) if value is not None), None))


def outcome(run: Found[Run]) -> str:
    """How a run ended, and the figures of its last evaluation."""
    reached = [
        f"{said(metric, [run])} {values[-1]:.4f}"
        for metric in metrics([run])
        if (values := [value for _, value in run.document.evaluations[metric] if value is not None])
    ]
    return joined([ended(run.document), ", ".join(reached), *run_tags([run])])
