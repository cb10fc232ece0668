"""`isotrain history`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def history(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with results of isotrain bench, at any depth.")],
    shown_as: Annotated[
        str, typer.Option("--format", help="table (with bars), csv, markdown or json, on stdout.")
    ] = "table",
) -> None:
    """Show how fast each target was at each git revision, oldest first, with its change from the result before.

    Results of one line share their configuration, device and dtype. Files that are no bench result are named and left
    out; invalid figures are marked and never compared with.

    Examples:

      isotrain history results/

      isotrain history results/ --format csv > history.csv
    """
    import json

    from ..benchmarks.export import FORMATS, to_csv, to_markdown
    from ..benchmarks.history import load_history
    from ..benchmarks.report import output_console
    from ..benchmarks.report_history import print_history
    from ..kernels.names import check_name

    check_name("--format", shown_as, FORMATS)
    found = load_history(folder)
    if shown_as == "table":
        print_history(found, output_console())
        return
    if shown_as == "json":
        typer.echo(json.dumps(list(found.rows), indent=2))
    else:
        typer.echo((to_csv if shown_as == "csv" else to_markdown)(found.rows), nl=False)
    for reason in found.skipped:
        typer.echo(f"left out: {reason}", err=True)
