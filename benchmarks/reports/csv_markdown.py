"""A result as one flat table, for spreadsheets (CSV) and pages (Markdown): one row per target, one column per figure.

Other columns say which targets are invalid, and why. A missing figure is an empty cell.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from ... import UserError
from ...albert_core.terminal.text import clean, figure
from ...kernels.names import check_name
from ..harness.document import Interval
from ..outcome.end_to_end import EndToEnd, Side
from ..outcome.model import Bench, Energy, MeasuredTarget, Rates, Target
from .blocks import Column, Table

FORMATS = ("table", "json", "csv", "markdown")
# The columns of Markdown. The CSV has all.
RATE_COLUMNS = (
    *Rates.model_fields,
    "share_of_peak_model",
    "share_of_peak_hardware",
    "roofline_share",
    "roofline_bound",
    "joules_per_sample",
    "energy_source",
    "peak_bytes",
)
MARKDOWN_COLUMNS = (
    "target",
    "valid",
    *RATE_COLUMNS,
    "n",
    "contended",
    "warm_up_steps",
    "warm_up_steady",
    *(f"seconds_{phase}" for phase in ("import", "open", "load", "first_step", "later_compiles", "steady")),
    "reasons",
)
WHOLE_COLUMNS = ("side", "extrapolated", "valid", "seconds", "ours_is_faster_by", *RATE_COLUMNS, "processes", "reasons")

Row = dict[str, Any]


def stdout_format(shown_as: str, json_only: bool, formats: Sequence[str] = FORMATS) -> str:
    """The format of stdout, from --format and --json.

    Raises:
        UserError: The format is unknown, or both options contradict each other.
    """
    check_name("--format", shown_as, formats)
    if json_only and shown_as not in ("table", "json"):
        raise UserError(f"--json and --format {shown_as} both name what stdout gets; give one of them")
    return "json" if json_only else shown_as


def rows(result: Bench | EndToEnd) -> list[Row]:
    """One flat row per target, or per side of an end-to-end run. All rows have the same keys."""
    if isinstance(result, Bench):
        found = [_target(result, target) for target in result.targets]
    else:
        found = [_side(result, side) for side in result.sides]
    keys = dict.fromkeys(key for row in found for key in row)
    return [{key: row.get(key, "") for key in keys} for row in found]


def to_csv(table: Sequence[Row]) -> str:
    """RFC 4180 with a header line. Numbers have all their digits."""
    output = io.StringIO()
    writer = csv.DictWriter(output, list(table[0]) if table else [])
    writer.writeheader()
    for row in table:
        writer.writerow({key: clean(value) if isinstance(value, str) else value for key, value in row.items()})
    return output.getvalue()


def result_markdown(result: Bench | EndToEnd) -> str:
    """A GitHub table of the most important figures with their intervals, then the notes."""
    wanted = MARKDOWN_COLUMNS if isinstance(result, Bench) else WHOLE_COLUMNS
    table = Table("", [Column(key, _figure(key)) for key in wanted], rows(result)).without_empty_columns()
    lines = [f"`{' '.join(result.command)}` at revision {result.environment.revision}, {result.created}", ""]
    lines += to_markdown(table).splitlines()
    lines += ["", *(f"* {note}" for note in result.notes)]
    return "\n".join(lines).rstrip() + "\n"


def to_markdown(table: Table[Any]) -> str:
    """A GitHub table with its texts cleaned, since a result may come from a stranger."""
    header = [column.header for column in table.columns]
    lines = [header, ["---"] * len(header), *table.rows]
    return "".join(f"| {' | '.join(clean(text).replace('|', '/') for text in line)} |\n" for line in lines)


def flat(table: Sequence[Row]) -> Table[Row]:
    """Flat rows as a table with all their digits."""
    return Table("", [Column(key, _text(key)) for key in (table[0] if table else ())], table)


def _text(key: str) -> Callable[[Row], str]:
    return lambda row: str(row[key])


def _figure(key: str) -> Callable[[Row], str]:
    return lambda row: _cell(row, key)


def _cell(row: Row, key: str) -> str:
    """A figure with its interval, if it has one."""
    if key in row:
        value = row[key]
        return f"{value:.1%}" if "share" in key and value != "" else figure(value) if _is_number(value) else str(value)
    middle, low, high = (row.get(f"{key}_{part}", "") for part in ("median", "low", "high"))
    return f"{figure(middle)} ({figure(low)} to {figure(high)})" if _is_number(middle) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _target(result: Bench, target: Target) -> Row:
    row: Row = {
        "target": target.name,
        **{key: getattr(target, key) for key in ("backend", "workload", "layout", "kernel", "batch_size", "baseline")},
        "status": target.status,
        "valid": target.valid,
        "reasons": "; ".join(target.reasons),
        "warnings": "; ".join(target.warnings),
        "created": result.created,
        "revision": result.environment.revision,
    }
    return row | _measured(target) if isinstance(target, MeasuredTarget) else row


def _measured(target: MeasuredTarget) -> Row:
    processes = target.processes
    row: Row = {
        "device": target.device.name,
        "emulated": target.emulated,
        "dtype": target.policy.label,
        "kernel_used": f"{target.kernel_used.name} {target.kernel_used.version}",
        "model": target.model.label,
        "random_weights": target.model.random_weights,
        "data": target.data.name,
        "processes": len(processes),
        "n": target.n,
        "contended": target.contended,
        "contended_processes": sum(process.environment.contended for process in processes),
        "steps_per_block": processes[0].steps_per_block,
        "warm_up_steps": median(process.warm_up.steps for process in processes),
        "warm_up_steady": all(process.warm_up.steady for process in processes),
    }
    for name, interval in target.figures:
        row |= _interval(name, interval)
    step = target.figures.step_seconds
    row |= {"step_seconds_p50": step.p50, "step_seconds_p90": step.p90, "step_seconds_p99": step.p99}
    row |= _limits(target)
    row |= {f"seconds_{name}": spread.median for name, spread in target.phases.items()}
    row["peak_bytes"] = target.memory.peak_bytes
    return row | _energy(target.energy)


def _limits(entry: Target | Side) -> Row:
    """Shares of the peak and the roofline; empty if the peak is only the host's."""
    shares = {} if entry.share_of_peak is None else entry.share_of_peak.document()
    place = {} if entry.roofline is None else entry.roofline.document()
    return {f"share_of_peak_{name}": value for name, value in shares.items()} | {
        f"roofline_{name}": value for name, value in place.items()
    }


def _energy(energy: Energy | None) -> Row:
    row = _interval("joules_per_sample", energy.joules_per_sample if energy else None)
    return row | {"energy_source": energy.source if energy else ""}


def _interval(name: str, interval: Interval | None) -> Row:
    return {f"{name}_{part}": getattr(interval, part, "") for part in Interval.model_fields}


def _side(result: EndToEnd, side: Side) -> Row:
    """One side of an end-to-end run."""
    return {
        "side": side.name,
        "extrapolated": side.extrapolated,
        "valid": side.valid,
        "reasons": "; ".join(side.reasons),
        "warnings": "; ".join(side.warnings),
        "processes": len(side.processes),
        **_interval("seconds", side.seconds),
        **_interval("ours_is_faster_by", side.ratio),
        **{
            key: text
            for name in Rates.model_fields
            for key, text in _interval(name, getattr(side.figures, name, None)).items()
        },
        **_limits(side),
        **_energy(side.energy),
        "peak_bytes": max((process.peak_bytes for process in side.processes), default=""),
        "created": result.created,
        "revision": result.environment.revision,
    }
