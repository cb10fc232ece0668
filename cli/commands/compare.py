"""`isotrain compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...albert_core.terminal.console import say_json


def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="The older result of isotrain bench.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The newer one, of the same configuration.")],
    again: Annotated[
        list[Path] | None, typer.Option(help="A second run to confirm by: of B, or given twice, of A and then of B.")
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="The least effect that counts, such as 5%. Default 3%; 10% where other work contended a process.",
        ),
    ] = None,
    json_only: Annotated[bool, typer.Option("--json", help="The comparison as JSON on stdout.")] = False,
) -> None:
    """Say whether B is faster or slower than A, target by target, and end with 1 for a confirmed regression.

    A verdict needs all three: a 95 % interval of the ratio that excludes 1, an effect larger than the gate, and a
    second run (--again) that agrees. Anything else is "no decision", with the reason. Exit code 0: no confirmed
    regression; 1: one; 2: results that can't be compared (another configuration, invalid figures, a broken file).

    Examples:

      isotrain compare results/before.json results/after.json

      isotrain compare before.json after.json --again after-2.json --gate 5%

      isotrain compare before.json after.json --again before-2.json --again after-2.json --json
    """
    from ... import UserError
    from ...benchmarks.regression.compare import compare_files, parse_share
    from ...benchmarks.reports.terminal import output_console
    from ...benchmarks.reports.terminal_history import print_comparison

    if len(again or ()) > 2:
        raise UserError(f"--again is given {len(again or ())} times; give it once (B's) or twice (A's, then B's)")
    comparison = compare_files(before, after, again or (), None if gate is None else parse_share(gate))
    if json_only:
        say_json(comparison.as_dict())
    else:
        print_comparison(comparison, output_console())
    raise typer.Exit(comparison.code)
