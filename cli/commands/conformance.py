"""`isotrain conformance`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ...albert_core.terminal.console import say, say_json
from ...albert_core.terminal.text import duration
from ..exits import Exit
from ..help import panel
from ..streams import kept

if TYPE_CHECKING:
    from ...benchmarks.outcome.conformance import CheckResult
    from ...conformance.case import Case
    from ...conformance.run import Target

# After so many, the user hears how long it may go on like this.
HANGS_IN_A_ROW = 3

_what, _how, _output = map(panel, ("What is checked", "How", "Output"))


def conformance(
    backend: Annotated[
        str, _what(help="The device: cpu, cuda, cuda:1, xla, tt, one by torch's name, or an installed package's.")
    ],
    sets: Annotated[
        list[str] | None, _what("--set", metavar="KEY=VALUE", help="An option of the backend: tt.math_fidelity=lofi.")
    ] = None,
    mode: Annotated[
        str | None,
        _what(
            help="test (values), grad (gradients), perf (rates) or support (lists dtypes and kernels, judges nothing); "
            "test and grad by default."
        ),
    ] = None,
    only: Annotated[
        str | None, _what(metavar="PATTERN", help="The checks with this in their names; * stands for anything.")
    ] = None,
    seed: Annotated[int, _how(help="Of the values that are computed with.")] = 0,
    time_limit: Annotated[
        float | None, _how(help="Seconds for each check, for devices that compile long; by default its own limit.")
    ] = None,
    json_file: Annotated[
        Path | None, _output("--json", metavar="FILE", help="Write the result there, anew after each check.")
    ] = None,
    against: Annotated[
        Path | None, _output(metavar="FILE", help="Show what is different from this result of another run or device.")
    ] = None,
) -> None:
    """Say what is wrong with a device, check by check: what it places, counts, computes and trains.

    A check that ends the device's process or hangs is a finding; the others run in a new one. Each error is shown as a
    share of what the dtype allows. Exit code 1: a check fails; 2: the device can't run here.

    Examples:

      isotrain conformance --backend cpu

      isotrain conformance --backend npu --set npu.precision=high --only operations/linear --json npu.json
    """
    from ...conformance.run import Target

    target = Target.of(backend, sets or [], seed, time_limit)
    if mode == "support":
        _show_support(target, only, json_file, against)
    else:
        show_checks(target, mode, only, json_file, against)


def show_checks(
    target: Target,
    mode: str | None = None,
    only: str | None = None,
    json_file: Path | None = None,
    against: Path | None = None,
    *,
    as_json: bool = False,
) -> NoReturn:
    """Runs the checks of a backend and shows what they found, or prints it as JSON. Ends the command."""
    from ...benchmarks.reports.terminal import output_console, print_blocks
    from ...conformance.catalogue import cases
    from ...conformance.run import choose, run_checks
    from ...conformance.table import comparison_blocks, load_conformance, result_blocks

    _check_json(json_file)
    before = None if against is None else load_conformance(against)
    chosen = choose(cases(), mode, only)
    result = run_checks(target, chosen, found=_Progress(chosen, target.time_limit), path=json_file)
    where = "" if json_file is None else f" and are kept in {json_file}"
    with kept(f"the checks have run{where}"):
        if as_json:
            say_json(result.document())
        else:
            changes = [] if before is None else comparison_blocks(before, result)
            print_blocks([*result_blocks(result), *changes], output_console())
    if result.status == "interrupted":
        raise typer.Exit(Exit.STOPPED)
    raise typer.Exit(Exit.FAILED if result.broken else Exit.DONE)


class _Progress:
    """Says at once what fails, how long it may take, and when a group is done: a slow device's checks take long."""

    def __init__(self, cases: Sequence[Case], time_limit: float | None) -> None:
        self._left = Counter(case.group for case in cases)
        self._limits = {case.name: time_limit or case.time_limit for case in cases}
        self._hangs = 0

    def __call__(self, check: CheckResult) -> None:
        del self._limits[check.name]
        self._hangs = self._hangs + 1 if check.status == "hang" else 0
        if check.is_broken:
            say(f"{check.status} {check.name}: {check.detail}", err=True)
        if self._hangs == HANGS_IN_A_ROW and self._limits:
            say(
                f"{HANGS_IN_A_ROW} checks in a row hang; if the other {len(self._limits)} do, too, they take "
                f"{duration(sum(self._limits.values()))}; Ctrl-C ends the run and shows what it has found, and "
                "--time-limit or --only makes it shorter",
                err=True,
            )
        self._left[check.group] -= 1
        if not self._left[check.group]:
            say(f"{check.group}: done", err=True)


def _show_support(target: Target, only: str | None, json_file: Path | None, against: Path | None) -> None:
    from ... import RunError, UserError
    from ...benchmarks.reports.terminal import output_console, print_blocks
    from ...conformance.run import Suite
    from ...conformance.table import support_blocks

    for flag, given in (("--only", only), ("--against", against)):
        if given is not None:
            raise UserError(f"{flag} {str(given)!r} is for checks, and --mode support runs none; drop one of them")
    _check_json(json_file)
    with Suite(target) as suite:
        suite.open()
        reason = suite.problem if suite.not_opened is None else suite.not_opened.detail
        if suite.support is None:
            raise RunError(f"backend {target.backend!r} can't say what it supports: {reason}")
        suite.keep([], 0, json_file)
        print_blocks(support_blocks(target.backend, suite.support), output_console())


def _check_json(file: Path | None) -> None:
    from ...albert_core.runs.files import check_place, make_folders

    if file is not None:
        check_place(file, "--json")
        make_folders(file.parent, "--json")
