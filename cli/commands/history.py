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
    fail_on_change: Annotated[
        bool, typer.Option("--fail-on-change", help="End with 1 where a target's newest change is one for the worse.")
    ] = False,
) -> None:
    """Show how fast each target was at each git revision, oldest first, with its change from the result before.

    Results of one target share their configuration, device and dtype. Invalid and contended ones are marked and never
    compared with. An asterisk: the 95 % interval of a change excludes none.

    Of 12 results and more, it names where the level changed by more than 3 %, and a creep of small changes. To accept a
    change with --fail-on-change, move the results before it to another folder.

    Examples:

      isotrain history results/

      isotrain history results/ --format csv > history.csv

      isotrain history results/ --fail-on-change
    """
    from ...benchmarks.regression.history import load_history
    from ...benchmarks.reports.csv_markdown import flat, stdout_format, to_csv, to_markdown
    from ...benchmarks.reports.terminal import output_console
    from ...benchmarks.reports.terminal_history import change_lines, print_history

    shown_as = stdout_format(shown_as, json_only)
    found = load_history(folder)
    if shown_as == "table":
        print_history(found, output_console())
    elif shown_as == "json":
        courses = [course.document() for course in found.courses]
        print_json("history", {"rows": found.rows(), "targets": courses, "left_out": list(found.skipped)})
    else:
        text = to_csv(found.rows()) if shown_as == "csv" else to_markdown(flat(found.rows()))
        say_lines(text.splitlines())
    if shown_as != "table":
        for line in (*(f"left out: {reason}" for reason in found.skipped), found.foreign):
            if line:
                say(line, err=True)
    worse = [course for course in found.courses if course.is_worse]
    if fail_on_change and worse:
        for course in worse:
            say(f"{course.points[0].target.name}: {'; '.join(change_lines(course)[-2:])}", err=True)
        raise typer.Exit(1)
