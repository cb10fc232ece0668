"""What training runs say: their losses and accuracies by step, how they ended."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from .charts import Axis, Column, Line, LineChart, Point, Section, Table, number, precise
from .documents import emulated_name
from .labels import titled
from .loading import Found, Results, Run

# The file's name, what stands above it, the axis, and whether two of them stand side by side.
CURVES = (
    ("training-loss", "Training loss", "Mean over the steps since the last point.", "loss", False),
    ("evaluation-loss", "Evaluation loss", "On the whole test split.", "loss", True),
    ("evaluation-accuracy", "Evaluation accuracy", "On the whole test split.", "accuracy", True),
)


def training(results: Results) -> Section:
    """Losses and accuracies of all runs, over the same axes."""
    section = Section("training", "Training runs")
    runs = results.runs
    if not runs:
        return section
    section.blocks.append(_table(runs))
    for key, title, words, unit, half in CURVES:
        lines = _lines(runs, key)
        if lines:
            chart = LineChart(key, titled(title, run_tags(runs)), words, Axis("step"), Axis(unit), lines, half=half)
            section.blocks.append(chart)
    return section


def run_tags(runs: Sequence[Found[Run]]) -> list[str]:
    """What holds for the figures of some run of them."""
    some = [run.path for run in runs if run.document.record.random_weights]
    if not some:
        return []
    return ["random weights" if len(some) == len(runs) else f"random weights in {', '.join(some)}"]


def run_name(run: Found[Run]) -> str:
    """The run's folder and what it ran on."""
    record = run.document.record
    backend = record.device.backend
    device = emulated_name(backend, backend) if record.device.emulated else backend
    return f"{run.path}, {device} {record.cast_policy.label}"


def _lines(runs: Sequence[Found[Run]], key: str) -> tuple[Line, ...]:
    curves = {
        "training-loss": [run.document.loss for run in runs],
        "evaluation-loss": [run.document.eval_loss for run in runs],
        "evaluation-accuracy": [run.document.eval_accuracy for run in runs],
    }[key]
    return tuple(
        Line(run_name(run), curve, style)
        for style, (run, curve) in enumerate(zip(runs, curves, strict=True))
        if any(value is not None for _, value in curve)
    )


def _table(runs: list[Found[Run]]) -> Table:
    columns = tuple(
        Column(header, numeric)
        for header, numeric in (
            ("run", False),
            ("model", False),
            ("ended", False),
            ("steps", True),
            ("train loss", True),
            ("eval loss", True),
            ("accuracy", True),
            ("samples/s", True),
            ("seconds", True),
        )
    )
    flagged = frozenset(index for index, run in enumerate(runs) if ended(run.document) != "completed")
    return Table(titled("Runs", run_tags(runs)), columns, tuple(_row(run) for run in runs), flagged)


def ended(run: Run) -> str:
    """How a run ended, in the words of its summary."""
    return "not ended" if run.summary is None else run.summary.status


def _row(run: Found[Run]) -> tuple[str, ...]:
    document = run.document
    record, summary = document.record, document.summary
    steps = max((step for step, _ in document.loss), default=0.0)
    rates = document.samples_per_second
    speed = "none (emulated)" if record.device.emulated else number(median(rates)) if rates else ""
    return (
        run_name(run),
        record.model,
        ended(document),
        f"{steps:,.0f}" if summary is None else f"{summary.step:,} of {summary.total_steps:,}",
        *(_last(curve) for curve in (document.loss, document.eval_loss, document.eval_accuracy)),
        speed,
        "" if summary is None or summary.seconds is None else number(summary.seconds),
    )


def _last(curve: tuple[Point, ...]) -> str:
    return precise(next((value for _, value in reversed(curve) if value is not None), None))
