"""`isotrain history`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...albert_core.terminal.console import say, say_lines
from ..documents import print_json


def history(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with results of isotrain bench, at any depth.")],
    shown_as: Annotated[
        str, typer.Option("--format", help="table (with each target's course), csv, markdown or json, on stdout.")
    ] = "table",
    json_only: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Show how fast each target was at each git revision, oldest first, with its change from the result before.

    Results of one line share their configuration, device and dtype. Invalid figures are marked and never compared with.
    An asterisk: the 95 % interval of a change excludes none.

    Examples:

      isotrain history results/

      isotrain history results/ --format csv > history.csv
    """
    from ...benchmarks.outcome.history import load_history
    from ...benchmarks.reports.csv_markdown import stdout_format, to_csv, to_markdown
    from ...benchmarks.reports.terminal import output_console
    from ...benchmarks.reports.terminal_history import print_history

    shown_as = stdout_format(shown_as, json_only)
    found = load_history(folder)
    if shown_as == "table":
        print_history(found, output_console())
        return
    if shown_as == "json":
        print_json("history", {"rows": found.rows(), "left_out": list(found.skipped)})
    else:
        say_lines((to_csv if shown_as == "csv" else to_markdown)(found.rows()).splitlines())
    for line in (*(f"left out: {reason}" for reason in found.skipped), *([found.foreign] if found.foreign else [])):
        say(line, err=True)
