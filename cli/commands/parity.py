"""`isotrain parity`: compares several devices in one command, or in parts: record, error-budget, compare."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...albert_core.terminal.console import say, say_json, say_lines
from ...albert_core.terminal.invocation import command
from ...kernels.names import meant
from ...kernels.words import count
from ..documents import check_html, print_json
from ..help import HelpfulCommand, HelpfulGroup, panel
from ..streams import kept

if TYPE_CHECKING:
    from ...benchmarks.outcome.parity import Parity

OWN = "run"


class _RunUnlessNamed(HelpfulGroup):
    """Runs `isotrain parity CONFIG ...` as `isotrain parity run CONFIG ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            _check_part(args[0], self.commands)
            args = [OWN, *args]
        return super().parse_args(ctx, args)


def _check_part(given: str, parts: Collection[str]) -> None:
    """Raises UserError for a misspelt part that isn't an existing configuration."""
    nearest = meant(given, parts)
    if nearest and not Path(given).exists():
        from ... import UserError

        raise UserError(
            f"parity {given!r} is neither a command nor a configuration; {nearest}`{command('parity', '--help')}` "
            "lists what there is"
        )


parity = typer.Typer(
    cls=_RunUnlessNamed,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="""Whether devices train alike: the same run on each, judged against float64.

    `isotrain parity CONFIG --reference cpu:float64 --candidate xla:float32` does all of it (`isotrain parity run
    --help`). For runs on several machines: `record` a trace on each, `compare` them anywhere.""",
)

_what, _how, _output = map(panel, ("What is run", "How thoroughly", "Output"))
_SETS = _what("--set", metavar="KEY=VALUE", help="Override a key of CONFIG for every side; may be repeated.")
_JSON = _output("--json", help="The result as JSON on stdout.")
_STEPS = _how(help="Optimizer steps (default 200, fewer where the run is shorter); 0 runs all.")


@parity.command(OWN, cls=HelpfulCommand)
def run(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="YAML file, or a packaged one by name: banking77, quickstart. Or a model of your own: FILE.py:NAME, "
            "MODULE:NAME, or an installed workload.",
        ),
    ],
    candidate: Annotated[
        list[str],
        _what(
            "--candidate",
            "--backend",
            help="What is judged, may be repeated: BACKEND[:NUMBER][:WORD+WORD], a word being a dtype, a value of the "
            "backend's own options, or key=value. cpu:bfloat16, xla:float32, tt:hifi2+bfp_bf8, cpu:float32+threads=1.",
        ),
    ],
    reference: Annotated[str, _what(help="The float64 side that judges.")] = "cpu:float64",
    sets: Annotated[list[str] | None, _SETS] = None,
    steps: Annotated[int | None, _STEPS] = None,
    seeds: Annotated[
        int, _how(help="Run this many seeds (at least 5) and test the final accuracies for equivalence.")
    ] = 1,
    margin: Annotated[float, _how(help="With --seeds: differences of accuracy up to this don't matter.")] = 0.01,
    python: Annotated[
        list[str] | None,
        _what(metavar="BACKEND=PATH", help="A backend's own interpreter: xla=.venv-xla/bin/python; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, _output(help="Folder for traces and parity.json (default parity/<config>-<time>).")
    ] = None,
    html: Annotated[Path | None, _output(help="Write the result as one HTML file, too.")] = None,
    time_limit: Annotated[float, _how(help="Seconds after which a side's process is ended.")] = 3600.0,
    json_only: Annotated[bool, _JSON] = False,
) -> None:
    """Train the same run on every side, each in a separate process, and judge each candidate.

    All start with the same weights and see the same batches (hashes are compared). These are judged: the loss, gradient
    norm, update norm and features at every step, every layer's hidden states before the first step, and the logits at
    each evaluation. They may be at most m times as far from float64 as the candidate's arithmetic is on the host. The
    head is trained once more on the reference's features and judged in its own dtype. An evaluation's figures may
    differ by the effect of the logits' allowed error. A model of your own is observed by its own layers (a method
    `layers`, else its longest ModuleList) and its output, for its first batch.

    Exit code 0: all pass; 1: one drifts or diverges; 2: one could not be compared.

    Examples:

      isotrain parity quickstart --candidate cpu:float32 --candidate cpu:bfloat16 --candidate tt:hifi2+bfp_bf8

      isotrain parity banking77 --candidate xla:float32 --python xla=.venv-xla/bin/python

      isotrain parity my_model.py:TinyGPT --candidate cpu:bfloat16
    """
    from ...benchmarks.parity.check import check, trace_folder
    from ...benchmarks.parity.run import Comparison, run_parity
    from ...benchmarks.parity.sides import parse_side

    pythons = _pythons(python or [])
    comparison = Comparison(
        config=config,
        reference=parse_side(reference),
        candidates=tuple(parse_side(text, pythons) for text in candidate),
        out=trace_folder(out, config),
        sets=tuple(sets or ()),
        steps=_step_limit(steps, seeds),
        seeds=seeds,
        margin=margin,
        time_limit=time_limit,
        pythons=pythons,
    )
    comparison = replace(comparison, again=_again(comparison.out))
    check(comparison)
    check_html(html)
    result = run_parity(comparison, lambda line: say(line, err=True))
    _finish(result, comparison.out / "parity.json", html, json_only)


@parity.command(cls=HelpfulCommand)
def record(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file, a packaged one by name, or a workload.")],
    out: Annotated[Path, _output(help="The trace's folder; it must not exist.")],
    backend: Annotated[str, _what(help="Device: cpu, cuda, cuda:1, xla, tt.")] = "cpu",
    dtype: Annotated[str | None, _what(help="Encoder dtype; float64 makes a reference.")] = None,
    sets: Annotated[list[str] | None, _SETS] = None,
    steps: Annotated[int | None, _STEPS] = None,
    replay_from: Annotated[
        Path | None, _how(metavar="REFERENCE", help="Also replay this trace: its hidden states, and its features.")
    ] = None,
    json_only: Annotated[bool, _JSON] = False,
) -> None:
    """Write a trace of one run: what a comparison needs, and a description of the machine.

    A float64 trace includes the error budgets of float32 and bfloat16; `isotrain parity error-budget` adds others.

    Examples:

      isotrain parity record banking77 --dtype float64 --out traces/reference

      isotrain parity record banking77 --backend cuda --dtype bfloat16 --out traces/h100 --replay-from traces/reference
    """
    from ...backends import ErrorBudget
    from ...benchmarks.parity.recording.record import record as record_trace
    from ...benchmarks.parity.run import record_error_budget
    from ...benchmarks.parity.sides import parse_side
    from ...benchmarks.parity.trace import check_free, check_reference, read_trace, write_trace

    check_free(out)
    side = parse_side(f"{backend}:{dtype}" if dtype else backend)
    reference = None if replay_from is None else read_trace(replay_from)
    chosen = [*(sets or []), *side.sets]
    trace = record_trace(config, side.label, chosen, replay_from=reference, steps=_step_limit(steps, 1))
    write_trace(trace, out)
    ended = trace.header.ended
    with kept(f"the trace is kept in {out}"):
        if json_only:
            stopped = None if ended is None else ended.document()
            found = {"trace": str(out), "label": trace.label, "steps": trace.steps, "ended": stopped}
            print_json("parity-record", found)
        else:
            say(f"trace: {out} ({trace.label}, {count(trace.steps, 'step')})")
    if trace.header.policy.compute == "float64":
        written = read_trace(out)
        check_reference(written)
        for name in ("float32", "bfloat16"):
            record_error_budget(written, ErrorBudget("ideal", name), 3600.0, lambda line: say(line, err=True))
    elif ended is not None:
        say(f"warning: training could not continue: {ended.reason}", err=True)


@parity.command(cls=HelpfulCommand)
def error_budget(
    reference: Annotated[Path, typer.Argument(help="A float64 trace.")],
    candidates: Annotated[list[Path], typer.Argument(help="Traces that need the error budgets of their arithmetic.")],
    json_only: Annotated[bool, _JSON] = False,
) -> None:
    """Record the missing error budgets of some candidates in the folder of a reference.

    It runs on the host with the reference's configuration, and needs its model and data.
    """
    from ...benchmarks.parity.run import add_error_budgets
    from ...benchmarks.parity.trace import check_reference, error_budget_folders, read_trace

    traces = [read_trace(folder) for folder in candidates]
    exact = read_trace(reference)
    check_reference(exact)
    add_error_budgets(exact, traces, 3600.0, lambda line: say(line, err=True))
    labels = dict.fromkeys(trace.header.error_budget.label for trace in traces)
    draws = {label: len(error_budget_folders(reference, label)) for label in labels}
    if json_only:
        print_json("parity-error-budget", {"reference": str(reference), "draws": draws})
    else:
        say_lines(f"error budget {label}: {count} draws in {reference}" for label, count in draws.items())


@parity.command(cls=HelpfulCommand)
def compare(
    reference: Annotated[Path, typer.Argument(help="A float64 trace.")],
    candidates: Annotated[list[Path], typer.Argument(help="Traces to judge, from any machine.")],
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the result as one HTML file.")] = None,
    json_only: Annotated[bool, _JSON] = False,
) -> None:
    """Judge traces from any machines and torch versions; exit codes as for `isotrain parity run`."""
    from ...benchmarks.parity.compare import compare as compare_traces

    check_html(html)
    _finish(compare_traces(reference, candidates), out, html, json_only)


def _finish(result: Parity, out: Path | None, html: Path | None, json_only: bool) -> None:
    """Prints the result, writes the requested files, and ends the command with the result's exit code."""
    from ...benchmarks.outcome.build import write_result
    from ...benchmarks.parity.compare import exit_code
    from ...benchmarks.reports.terminal import output_console, print_blocks
    from ...benchmarks.reports.views.parity import parity_view

    if out is not None:
        write_result(result, out)
    if html is not None:
        from ...albert_core.runs.files import write_text
        from ...benchmarks.reports.html.write import document_page

        write_text(html, document_page(result, f"parity against {result.reference.label}"))
    where = " and ".join(str(path) for path in (out, html) if path is not None)
    with kept(f"the comparison is complete{f' and is kept in {where}' if where else ''}"):
        if json_only:
            say_json(result.document())
        else:
            print_blocks(parity_view(result), output_console())
        for kind, path in (("result", out), ("report", html)):
            if path is not None:
                say(f"{kind}: {path}", err=json_only)
    raise typer.Exit(exit_code(result))


def _again(out: Path) -> str:
    """This command with its folder, ready to paste: it uses the traces that are there."""
    words = sys.argv[1:]
    named = any(word == "--out" or word.startswith("--out=") for word in words)
    return command(*words, *(() if named else ("--out", str(out))))


def _step_limit(steps: int | None, seeds: int) -> int | None:
    from ... import UserError
    from ...benchmarks.parity.sides import STEPS

    if steps is None:
        # Final metrics need whole runs.
        return STEPS if seeds == 1 else None
    if steps < 0:
        raise UserError(f"--steps {steps} is out of range; give a number of optimizer steps, or 0 for all")
    return steps or None


def _pythons(given: list[str]) -> dict[str, str]:
    from ... import UserError

    found = {}
    for item in given:
        name, separator, path = item.partition("=")
        if not separator or not Path(path).expanduser().is_file():
            raise UserError(f"--python {item!r}: write BACKEND=PATH of an interpreter, xla=.venv-xla/bin/python")
        found[name] = str(Path(path).expanduser().absolute())
    return found
