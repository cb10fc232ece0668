"""`isotrain doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ... import UserError
from ...albert_core.terminal.invocation import command
from ..documents import print_json
from .conformance import show_checks

if TYPE_CHECKING:
    from ...conformance.doctor import Report


def doctor(
    full: Annotated[
        str | None,
        typer.Option(
            metavar="BACKEND", help="Run every check of this device. isotrain conformance does, too, with more options."
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of the device of --full: tt.math_fidelity=lofi."),
    ] = None,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Each device's checks, dtype, kernels, peaks, choices and how to get it."),
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
) -> None:
    """Say which devices work here, by a few checks of each, or what is missing and how to get it.

    Each is tested in a separate process. Exits with 1 when a device that is here fails its test.

    Examples:

      isotrain doctor

      isotrain doctor -v

      isotrain doctor --full cuda
    """
    from ...backends import list_backends
    from ...conformance.doctor import examine

    if full is not None:
        from ...conformance.run import Target

        show_checks(Target.of(full, sets or []), as_json=json_output)
    if sets:
        raise UserError("--set is for one device; add --full BACKEND")
    reports = examine(list_backends(), peaks=verbose)
    if json_output:
        print_json("doctor", {"backends": [report.document() for report in reports]})
    else:
        _show(reports, verbose)
    if any(report.status == "FAIL" for report in reports):
        raise typer.Exit(1)


COLOURS = {"PASS": "green", "FAIL": "bold red", "absent": "yellow"}


def _show(reports: list[Report], verbose: bool) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from ...benchmarks.reports.blocks import Table, word_columns
    from ...benchmarks.reports.terminal import output_console, print_blocks

    console = output_console()
    for report in reports:
        if verbose:
            status = Text(report.status, COLOURS[report.status])
            console.print(Text.assemble((report.backend, "bold"), "  ", status))
            for line in _details(report):
                if "`" in line or line.startswith("fix: "):
                    # A command's line isn't broken, so that it can be pasted.
                    console.print(Text(f"  {line}"), soft_wrap=True)
                else:
                    console.print(Padding(Text(line), (0, 0, 0, 2)))
    if verbose:
        return
    rows = [(report.backend, report.status, _summary(report)) for report in reports]
    print_blocks([Table("", word_columns("", "", ""), rows, lambda row: COLOURS[row[1]])], console)
    if any(report.status != "PASS" for report in reports):
        console.print(Text(f"how to get what is missing: {command('doctor', '-v')}"), soft_wrap=True)


def _summary(report: Report) -> str:
    """A device in one line."""
    from ...backends import UNTESTED

    words = report.reason
    if report.status == "PASS":
        assert report.device is not None, "it was opened"
        here = [name for name, state in report.kernels.items() if state.startswith("available")]
        words = f"{report.device.name}; kernels {', '.join(here)}"
        # The reason of a processor or GPU is its name again.
        if not report.reason.startswith(report.device.name):
            words = f"{words}; {report.reason}"
    return f"{words}; {UNTESTED}" if report.untested else words


def _details(report: Report) -> list[str]:
    from ...backends import UNTESTED
    from ...benchmarks.reports.views.bench import peak_words

    lines = [report.reason, *([f"fix: {report.fix}"] if report.fix else []), *([UNTESTED] if report.untested else [])]
    if report.device is not None:
        bfloat16 = "refused" if report.bfloat16 is None else report.bfloat16.reason
        lines += [f"device: {report.device.name}", f"bfloat16: {bfloat16}"]
        lines += [f"kernel {name}: {state}" for name, state in report.kernels.items()]
        lines += [peak_words(report.backend, peaks, real=True) for peaks in report.peaks]
        lines += [f"not offered: {lacking}" for lacking in report.lacks]
        lines += [f"chosen: {choice.line()}" for choice in report.choices]
    return lines + [f"{check.name}: {'ok' if check.ok else 'WRONG'}, {check.detail}" for check in report.checks]
