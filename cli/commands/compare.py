"""`isotrain compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...albert_core.terminal.console import say_json, say_lines
from ..help import panel

_gate, _output = map(panel, ("What counts", "Output"))


def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="The older result of isotrain bench.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The newer one, of the same configuration.")],
    again: Annotated[
        list[Path] | None, typer.Option(help="A second run to confirm by: of B, or given twice, of A and then of B.")
    ] = None,
    what: Annotated[
        list[str] | None,
        _gate(help="speed (default), memory, first_step, load, energy or loss; may be repeated."),
    ] = None,
    gate: Annotated[
        list[str] | None,
        _gate(
            metavar="SHARE",
            help="The least rise that counts: 5% for all, memory=2% for one. Default for speed 3%; 10% where other "
            "work contended a process.",
        ),
    ] = None,
    on_undecided: Annotated[
        str, _gate(help="What an inconclusive target does: fail (exit code 3), warn or pass (exit code 0).")
    ] = "fail",
    allow_missing: Annotated[
        bool, _gate("--allow-missing", help="Let pass a target that only one of the two has.")
    ] = False,
    allow: Annotated[
        list[str] | None,
        _gate(
            metavar="KEY",
            help="Let differ what decides speed: processor, governor, torch, kernel, module (the file of one's own), "
            "device, threads, inter_op, affinity, quota or nice; may be repeated.",
        ),
    ] = None,
    shown_as: Annotated[
        str,
        _output(
            "--format",
            help="On stdout: table, json, csv, markdown, github (annotations, and the job's summary) or junit.",
        ),
    ] = "table",
    json_only: Annotated[bool, _output("--json", help="The same as --format json.")] = False,
) -> None:
    """Say of each target whether B has a regression over A, has none, or whether this pair can't tell.

    Regression: the 95 % interval of the ratio excludes 1, the median passes the gate, and a second run (--again) says
    so, too. No regression: the whole interval lies below the gate. Anything else is inconclusive. Each says the
    smallest change that the pair could have shown. Exit code 0: no regression; 1: one, or a missing target; 2: results
    that can't be compared (another configuration, invalid figures, a broken file); 3: inconclusive.

    Examples:

      isotrain compare results/before.json results/after.json

      isotrain compare before.json after.json --again after-2.json --gate 5% --what speed --what memory

      isotrain compare before.json after.json --again before-2.json --again after-2.json --format github
    """
    from ... import UserError
    from ...benchmarks.regression.compare import Asked, compare_files
    from ...benchmarks.reports.csv_markdown import stdout_format
    from ...benchmarks.reports.terminal import output_console
    from ...benchmarks.reports.terminal_comparison import FORMATS, print_comparison

    shown_as = stdout_format(shown_as, json_only, ("table", "json", *FORMATS))
    if len(again or ()) > 2:
        raise UserError(f"--again is given {len(again or ())} times; give it once (B's) or twice (A's, then B's)")
    asked = Asked(what or (), gate or (), on_undecided, allow_missing, allow or ())
    comparison = compare_files(before, after, again or (), asked)
    if shown_as == "json":
        say_json(comparison.as_dict())
    elif shown_as == "table":
        print_comparison(comparison, output_console())
    else:
        say_lines(FORMATS[shown_as](comparison).splitlines())
    raise typer.Exit(comparison.code)
