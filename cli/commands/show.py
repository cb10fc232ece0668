"""`isotrain show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...albert_core.terminal.console import say_json

if TYPE_CHECKING:
    from rich.console import Console

LEAST_WIDTH, MOST_WIDTH = 40, 1000
# The files by which a folder is recognised, in this order.
SUMMARY, TRACE, EXPORT, PARITY = "summary.json", "trace.json", "export.json", "parity.json"


def show(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|RUN",
            help="A result of bench, parity or conformance, or a run's, trace's or export's folder.",
        ),
    ],
    width: Annotated[int | None, typer.Option(help="Characters a line; the terminal's when not given.")] = None,
    json_only: Annotated[bool, typer.Option("--json", help="The stored document itself.")] = False,
) -> None:
    """Show a stored result again, as the command that made it did.

    Examples:

      isotrain show results/bench-20260101T120000Z.json

      isotrain show runs/banking77-20260101-120000 --width 100
    """
    from pydantic import ValidationError

    from ... import UserError
    from ...benchmarks.outcome.load import lack
    from ...benchmarks.outcome.upgrade import schema_of
    from ...benchmarks.reports.terminal import output_console
    from ..documents import print_json

    if width is not None and not LEAST_WIDTH <= width <= MOST_WIDTH:
        raise UserError(f"--width {width} is out of range; allowed is {LEAST_WIDTH} to {MOST_WIDTH}")
    file, document = _read(target)
    if json_only:
        schema = schema_of(document)
        if schema is not None:
            say_json({"schema": schema, **document})
        else:
            kind = "run" if file.name == SUMMARY else "export"
            print_json(kind, {kind: str(file.parent), **document})
        return
    console = output_console(width=width)
    try:
        # A first run without output, so that nothing of a damaged document is shown.
        with console.capture():
            _print(document, file, console)
    except ValidationError as error:
        raise UserError(f"{str(file)!r} is not as its schema says ({lack(error)}); make it again") from error
    _print(document, file, console)


def _read(target: Path) -> tuple[Path, dict[str, Any]]:
    """The file that `target` is or contains, and its document. Raises UserError if it can't be shown."""
    from ... import UserError
    from ...albert_core.config.parsing import read_json_object
    from ...albert_core.terminal.text import quoted
    from ...benchmarks.outcome.upgrade import schema_of, upgraded

    file = _of_folder(target) if target.is_dir() else target
    document = upgraded(read_json_object(file, "give a result of isotrain, or a run's folder", nan=True))
    schema = schema_of(document)
    nameless = schema is None and file.name in (SUMMARY, EXPORT)
    if not nameless and schema not in list(_PRINTERS):
        known = ", ".join(_PRINTERS)
        raise UserError(
            f"{str(file)!r} has schema {quoted(schema)}, which can't be shown; shown are {known}, and "
            "the folders of runs and exports"
        )
    return file, document


def _of_folder(folder: Path) -> Path:
    from ... import UserError

    for name in (SUMMARY, TRACE, EXPORT, PARITY):
        if (folder / name).is_file():
            return folder / name
    if (folder / "config.yaml").is_file():
        raise UserError(f"run {str(folder)!r} has not ended yet: it has no {SUMMARY}; continue with --resume, or wait")
    raise UserError(f"{str(folder)!r} holds no run, trace or export; give such a folder, or a result's file")


def _print(document: dict[str, Any], file: Path, console: Console) -> None:
    from ...benchmarks.outcome.upgrade import schema_of

    schema = schema_of(document)
    if schema is not None:
        _PRINTERS[schema](document, console)
    elif file.name == SUMMARY:
        _print_run(document, file.parent, console)
    else:
        _print_values("export", document, console)


def _print_bench(document: dict[str, Any], console: Console) -> None:
    from ...benchmarks.outcome.model import Bench
    from ...benchmarks.reports.terminal import print_blocks
    from ...benchmarks.reports.views.bench import bench_view

    print_blocks(bench_view(Bench.model_validate(document)), console)


def _print_end_to_end(document: dict[str, Any], console: Console) -> None:
    from ...benchmarks.outcome.end_to_end import EndToEnd
    from ...benchmarks.reports.terminal import print_blocks
    from ...benchmarks.reports.views.end_to_end import end_to_end_view

    print_blocks(end_to_end_view(EndToEnd.model_validate(document)), console)


def _print_parity(document: dict[str, Any], console: Console) -> None:
    from ...benchmarks.outcome.parity import Parity
    from ...benchmarks.reports.terminal import print_blocks
    from ...benchmarks.reports.views.parity import parity_view

    print_blocks(parity_view(Parity.model_validate(document)), console)


def _print_against(document: dict[str, Any], console: Console) -> None:
    from ...benchmarks.against.comparison import comparison
    from ...benchmarks.outcome.against import Against
    from ...benchmarks.reports.terminal_comparison import print_comparison

    print_comparison(comparison(Against.model_validate(document)), console)


def _print_conformance(document: dict[str, Any], console: Console) -> None:
    from ...benchmarks.outcome.conformance import Conformance
    from ...benchmarks.reports.terminal import print_blocks
    from ...conformance.table import result_blocks

    print_blocks(result_blocks(Conformance.model_validate(document)), console)


def _print_trace(document: dict[str, Any], console: Console) -> None:
    shown: dict[str, Any] = {key: document[key] for key in ("label", "steps", "device", "policy") if key in document}
    _print_values("trace", shown, console)


def _print_run(document: dict[str, Any], folder: Path, console: Console) -> None:
    from rich.text import Text

    from ...albert_core.config.best import Best
    from ...albert_core.terminal.text import clean
    from ...benchmarks.outcome.training_run import EndedRun
    from ...benchmarks.reports.terminal import fitted
    from .train import figures_table

    run = EndedRun.model_validate(document)
    words = Best(run.best_by.metric, run.best_by.mode).words
    last = run.evaluation
    table = figures_table(tuple(last), last, run.best, words, run.step, run.total_steps, run.seconds)
    console.print(Text(clean(f"{run.status}: {run.model}, {run.dtype}, on {run.device}")))
    console.print(Text(clean(f"data {run.dataset}")))
    console.print(fitted(table, console))
    for choice in run.choices:
        console.print(Text(clean(f"chosen: {choice.line()}")))
    if run.early_stop:
        console.print(Text(clean(f"stopped early: {run.early_stop}")))
    if run.collapse is not None:
        console.print(Text(clean(f"COLLAPSED: {run.collapse.reason}"), style="red"))
    console.print(Text(f"run: {folder}"))


def _print_values(kind: str, values: dict[str, Any], console: Console) -> None:
    """Prints a short document, one line per value."""
    from rich.text import Text

    from ...albert_core.terminal.text import clean

    console.print(Text(f"isotrain {kind}", style="bold"))
    for key, value in values.items():
        console.print(Text(clean(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")))


_PRINTERS = {
    "isotrain.bench/2": _print_bench,
    "isotrain.end-to-end/2": _print_end_to_end,
    "isotrain.parity/2": _print_parity,
    "isotrain.against/1": _print_against,
    "isotrain.conformance/1": _print_conformance,
    "isotrain.trace/2": _print_trace,
}
