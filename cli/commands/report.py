"""`isotrain report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...albert_core.terminal.console import say
from ...kernels.words import count
from ..documents import print_json
from ..streams import kept

if TYPE_CHECKING:
    from ...benchmarks.reports.html.write import Written

# More warnings would scroll the name of the page away.
MOST_WARNINGS = 10


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with results and training runs, searched at any depth.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    png: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Each chart as a PNG file, too.")] = None,
    json_only: Annotated[bool, typer.Option("--json", help="What was written and what was left out, as JSON.")] = False,
    show: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
) -> None:
    """Show results as one HTML page that needs nothing beside it.

    Reads what `isotrain bench`, `isotrain parity` and `isotrain train` wrote. A file that can't be used is named.

    Examples:

      isotrain report results/

      isotrain report . -o report.html --png charts/
    """
    from ...benchmarks.reports.html.write import write_report

    written = write_report(folder, out, png)
    with kept(f"the report is complete and is kept in {written.page}"):
        if json_only:
            _print_json(written)
        else:
            _print(written, png)
    if show:
        import webbrowser

        if not webbrowser.open(written.page.resolve().as_uri()):
            say(f"no browser was found here; open {written.page} in one", err=True)


def _print_json(written: Written) -> None:
    from dataclasses import asdict

    pictures = [str(path) for path in written.pictures]
    left_out = [asdict(skipped) for skipped in written.skipped]
    print_json(
        "report", {"page": str(written.page), "charts": written.charts, "pictures": pictures, "left_out": left_out}
    )


def _print(written: Written, png: Path | None) -> None:
    for skipped in written.skipped[:MOST_WARNINGS]:
        say(f"isotrain: warning: {skipped.path} is left out: {skipped.reason}", err=True)
    if len(written.skipped) > MOST_WARNINGS:
        more = len(written.skipped) - MOST_WARNINGS
        say(f"isotrain: warning: {more} more are left out; the report's notes name them all", err=True)
    if written.foreign:
        say(f"isotrain: {written.foreign}", err=True)
    say(f"report: {written.page} ({count(written.charts, 'chart')})")
    if png is not None:
        say(f"charts: {len(written.pictures)} PNG files in {png}")
