"""`isotrain bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...albert_core.terminal.console import say, say_json, say_lines
from ..help import panel
from ..streams import kept

if TYPE_CHECKING:
    from ...benchmarks.bench import Outcome
    from ...benchmarks.harness.plan import Options
    from ...benchmarks.outcome.end_to_end import EndToEnd
    from ...benchmarks.outcome.model import Bench
    from ...benchmarks.reports.blocks import Block

_ENCODER, _DATASET, _MAX_LENGTH = "random:albert-base-v2", "banking77-lengths", 128
_what, _how, _pairs, _output = map(panel, ("What is measured", "How thoroughly", "Against another version", "Output"))


def bench(
    module: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE.py:NAME]",
            help="A workload of your own, with model, batches and loss; or the name of an installed one. Its workloads "
            "are forward and full_step. Without it: an encoder on texts.",
        ),
    ] = None,
    backend: Annotated[
        list[str] | None, _what(help="Device: cpu (default), cuda, cuda:1, xla, tt; may be repeated.")
    ] = None,
    model: Annotated[
        str, _what(help="Encoder: random:albert-base-v2, random:albert-large-v2, random:tiny, a folder, or a Hub id.")
    ] = _ENCODER,
    workload: Annotated[
        list[str] | None,
        _what(
            help="forward (frozen encoder and head) and train_step (the same, loss, backward, AdamW) by default; "
            "head_step (on cached features), full_step (all layers trained); end_to_end: a whole training run, "
            "tokenising to trained head, with cold caches."
        ),
    ] = None,
    layout: Annotated[
        list[str] | None,
        _what(
            help="padded (to --max-length), bucketed (by length, few lengths), dynamic (to each batch's longest text), "
            "packed (no padding); all by default."
        ),
    ] = None,
    kernel: Annotated[
        list[str] | None,
        _what(
            help="Frozen forward: auto (the backend's fastest, default), one of the backend's by name (portable, "
            "native on cpu, triton and flash on cuda, compile on both), or transformers (its own module)."
        ),
    ] = None,
    torch_compile: Annotated[
        str | None,
        _what(
            metavar="MODE",
            help="Compile the step of --workload full_step by torch.compile (cpu, cuda, tpu): default, reduce-overhead "
            "or max-autotune.",
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        _what(help="Texts a step (default 8); repeat for a sweep. With --vs: the sizes to choose the best from."),
    ] = None,
    vs: Annotated[
        list[str] | None,
        _what(
            "--vs",
            "--baseline",
            metavar="NAME",
            help="Compare with baselines (all of the workload, forward or full_step) or one by name; may be repeated. "
            "See docs/benchmarks.md.",
        ),
    ] = None,
    texts: Annotated[
        int | None, _what(help="Texts that everyone runs in a comparison with baselines (default 512, quick 32).")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        _what(
            help="Encoder dtype: bfloat16 (default), float32, float64, float16; frozen also int8 or float8_e4m3; may "
            "be repeated. The table says what the device makes of it."
        ),
    ] = None,
    strict_dtype: Annotated[
        bool, _what("--strict-dtype", help="Compute in --dtype even where the device only emulates it.")
    ] = False,
    max_length: Annotated[
        int, _what(help="Tokens a text is cut to, and padded to in the padded layout.")
    ] = _MAX_LENGTH,
    threads: Annotated[list[int] | None, _what(help="CPU threads; torch's choice when not given.")] = None,
    dataset: Annotated[
        str,
        _what(help="Where lengths come from: banking77-lengths (embedded, random ids), or a data set as for training."),
    ] = _DATASET,
    tokenizer: Annotated[
        str | None, _what(help="tokenizer.json, folder or Hub id for --dataset; the model's own when not given.")
    ] = None,
    processes: Annotated[
        int | None, _how(help="Fresh processes a target (default 3; --against: 6 pairs); they widen the interval.")
    ] = None,
    blocks: Annotated[
        int | None, _how(help="Timed blocks a process (default 9; --against: 20), each of k steps.")
    ] = None,
    seconds: Annotated[
        float | None,
        _how(help="Seconds for a process's timed blocks (default 10; --against: 5). k, at least 1, follows."),
    ] = None,
    quick: Annotated[
        bool,
        _how(
            "--quick", help="A smoke run, no result: one process of 3 short blocks. Intervals are within one process."
        ),
    ] = False,
    against: Annotated[
        str | None,
        _pairs(
            metavar="REV|DIR",
            help="Compare this checkout with a git revision or another checkout: their processes run in pairs and "
            "alternate block by block. A workload of your own is the same file for both.",
        ),
    ] = None,
    gate: Annotated[
        str | None, _pairs(metavar="SHARE", help="The smallest rise of time that counts (default 5%).")
    ] = None,
    on_undecided: Annotated[
        str | None,
        _pairs(help="What an inconclusive target does: fail (default, exit code 3), warn or pass (exit code 0)."),
    ] = None,
    out: Annotated[
        Path | None, _output(help="Result file (.json) or folder; results/bench-<time>.json by default.")
    ] = None,
    shown_as: Annotated[
        str,
        _output(
            "--format",
            help="On stdout: table, json, csv or markdown, with --against also github or junit; other than table "
            "writes a file only for --out.",
        ),
    ] = "table",
    profile: Annotated[
        int | None,
        _output(
            metavar="STEPS",
            help="After its blocks, profile this many steps of each target: a trace for https://ui.perfetto.dev beside "
            "the result, and what costs most.",
        ),
    ] = None,
    json_only: Annotated[bool, _output("--json", help="The same as --format json.")] = False,
    sets: Annotated[
        list[str] | None,
        _what("--set", metavar="KEY=VALUE", help="An option of a backend, as in a configuration: tt.arch=..."),
    ] = None,
    seed: Annotated[int, _what(help="Random weights, texts, head, order of the targets, bootstrap.")] = 23,
    dry_run: Annotated[bool, _output("--dry-run", help="Print what would run, in which order, and end.")] = False,
) -> None:
    """Measure how fast a device does the frozen forward and the training step, against its own limit.

    Every target (workload x layout x kernel x batch size) runs in fresh processes, interleaved; each warms up to
    its steady state, then times blocks of steps behind the device's fence. Exit code 1 when a figure is invalid: a
    compilation inside a timed block, NaN, a fence that doesn't wait, more FLOP/s than the device's measured peak.

    Examples:

      isotrain bench --quick

      isotrain bench --layout padded --layout packed --kernel auto --kernel transformers --dtype float32

      isotrain bench --workload forward --batch-size 8 --batch-size 64 --processes 5 --out results/sweep.json

      isotrain bench --against origin/main --workload forward --layout packed --gate 5%

      isotrain bench my_model.py:TinyGPT --backend cpu --backend tt
    """
    from dataclasses import replace

    from ...albert_core.config.backend import backend_options, resolved_backend
    from ...benchmarks.bench import run_bench, watcher_for_terminal
    from ...benchmarks.harness.plan import (
        DEFAULT_WORKLOADS,
        END_TO_END,
        LAYOUTS,
        MODULE_WORKLOADS,
        PAIRED_BLOCKS,
        PAIRED_PROCESSES,
        PAIRED_SECONDS,
        Options,
        make_plan,
        with_baselines,
        with_quick,
    )
    from ...benchmarks.reports.csv_markdown import FORMATS, stdout_format
    from ...benchmarks.reports.terminal import output_console, print_blocks
    from ...benchmarks.reports.views.bench import bench_view
    from ...benchmarks.reports.views.plan import plan_view

    _check_pairs(against, gate=gate, on_undecided=on_undecided)
    shown_as = stdout_format(shown_as, json_only, (*FORMATS, *(("github", "junit") if against else ())))
    if module is not None:
        given = {
            "--model": model != _ENCODER,
            "--layout": layout,
            "--kernel": kernel,
            "--batch-size": batch_size,
            "--vs": vs,
            "--texts": texts,
            "--max-length": max_length != _MAX_LENGTH,
            "--dataset": dataset != _DATASET,
            "--tokenizer": tokenizer,
        }
        _refuse_options_of_texts(module, [flag for flag, value in given.items() if value])
    own_options = backend_options(sets or [])
    options = Options(
        backends=tuple(resolved_backend(name, own_options) for name in backend or ("cpu",)),
        model=module or model,
        module=module is not None,
        workloads=tuple(workload or (MODULE_WORKLOADS if module else DEFAULT_WORKLOADS)),
        layouts=tuple(layout or LAYOUTS),
        kernels=tuple(kernel or ("auto",)),
        batch_sizes=tuple(batch_size or (() if vs else (8,))),
        dtypes=tuple(dtype or ("bfloat16",)),
        strict_dtype=strict_dtype,
        max_length=max_length,
        threads=_once("--threads", threads),
        dataset=dataset,
        tokenizer=tokenizer,
        texts=texts,
        profile=profile or 0,
        seed=seed,
        backend_options=own_options,
        torch_compile=torch_compile,
    )
    whole = options.workloads == (END_TO_END,) and module is None
    if vs:
        options = with_baselines(options, vs)
    if quick:
        options = with_quick(options)
    elif against is not None:
        options = replace(options, processes=PAIRED_PROCESSES, blocks=PAIRED_BLOCKS, seconds=PAIRED_SECONDS)
    thoroughness: dict[str, Any] = {"processes": processes, "blocks": blocks, "seconds": seconds, "texts": texts}
    options = replace(options, **{key: value for key, value in thoroughness.items() if value is not None})
    if against is not None:
        _against(options, against, gate or "5%", on_undecided or "fail", out, shown_as, dry_run)
    if whole:
        _end_to_end(options, out, shown_as, dry_run)
    plan = make_plan(options)
    if dry_run:
        print_blocks(plan_view(plan), output_console())
        return
    with watcher_for_terminal(plan) as watcher:
        outcome = run_bench(options, out=out, write=shown_as == "table" or out is not None, watcher=watcher)
    if outcome.result is None:
        say("isotrain: interrupted before a target was complete; nothing was written", err=True)
    _show(outcome, shown_as, bench_view)


def _once(flag: str, values: list[int] | None) -> int | None:
    """The single value of an option that all targets share. With several, click would silently take the last."""
    from ... import UserError

    if values and len(values) > 1:
        given = ", ".join(str(value) for value in values)
        raise UserError(f"{flag} is given {given}; a result has one value of it: run isotrain bench once for each")
    return values[0] if values else None


def _refuse_options_of_texts(module: str, flags: Sequence[str]) -> None:
    """Refuses options that mean nothing for a module with batches of its own."""
    from ... import UserError

    if flags:
        raise UserError(f"{flags[0]} is for texts, and {module} makes its own module and batches; drop it")


def _show(outcome: Outcome, shown_as: str, view: Callable[[Any], list[Block]]) -> None:
    """Prints a result and where it was written. Ends the command."""
    from ...benchmarks.reports.terminal import output_console, print_blocks

    where = "" if outcome.path is None else f" and is kept in {outcome.path}"
    with kept(f"the measurement is complete{where}"):
        if outcome.result is not None and shown_as != "table":
            _print_as(outcome.result, shown_as)
        elif outcome.result is not None:
            print_blocks(view(outcome.result), output_console())
        if outcome.path is not None:
            say(f"result: {outcome.path}", err=shown_as != "table")
    raise typer.Exit(outcome.code)


def _print_as(result: Bench | EndToEnd, shown_as: str) -> None:
    """Prints a whole result as JSON, CSV or Markdown."""
    from ...benchmarks.reports.csv_markdown import result_markdown, rows, to_csv

    if shown_as == "json":
        say_json(result.document())
    else:
        text = to_csv(rows(result)) if shown_as == "csv" else result_markdown(result)
        say_lines(text.splitlines())


def _end_to_end(options: Options, out: Path | None, shown_as: str, dry_run: bool) -> None:
    """Runs the end-to-end workload, which has another kind of result. Ends the command."""
    from ...benchmarks.end_to_end.run import check, run_end_to_end, training_arguments
    from ...benchmarks.reports.views.end_to_end import end_to_end_view

    if dry_run:
        check(options)
        command = " ".join(["isotrain", *training_arguments(options, Path("FOLDER"))])
        say(f"{options.processes} x {command}")
        if options.vs:
            say(f"{options.processes} x the experiment's loop, dynamic padding; the same padded to --max-length")
        raise typer.Exit
    outcome = run_end_to_end(
        options, out=out, write=shown_as == "table" or out is not None, tell=lambda line: say(line, err=True)
    )
    if outcome.result is None:
        say("isotrain: no run was complete; nothing was written", err=True)
    _show(outcome, shown_as, end_to_end_view)


def _check_pairs(against: str | None, **given: str | None) -> None:
    """Refuses options of --against without it."""
    from ... import UserError

    for name, value in given.items():
        if against is None and value is not None:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {value} is for --against; give that, too, or compare results by isotrain compare")


def _against(
    options: Options, named: str, gate: str, on_undecided: str, out: Path | None, shown_as: str, dry_run: bool
) -> None:
    """Compares with another checkout, which has another kind of result. Ends the command."""
    from ...benchmarks.against.checkout import other, own
    from ...benchmarks.against.comparison import comparison
    from ...benchmarks.against.run import Asked, paired_plan, run_against
    from ...benchmarks.bench import INTERRUPTED, watcher_for_terminal
    from ...benchmarks.regression.metrics import parse_share
    from ...benchmarks.regression.verdict import check_undecided
    from ...benchmarks.reports.terminal import output_console, print_blocks
    from ...benchmarks.reports.terminal_comparison import FORMATS as COMPARISON_FORMATS
    from ...benchmarks.reports.terminal_comparison import print_comparison
    from ...benchmarks.reports.views.plan import plan_view

    plan = paired_plan(options)
    asked = Asked(parse_share(gate), check_undecided(on_undecided))
    if dry_run:
        print_blocks(plan_view(plan), output_console())
        raise typer.Exit
    checkouts = other(named), own()
    with watcher_for_terminal(plan) as watcher:
        write = shown_as == "table" or out is not None
        result, path = run_against(plan, checkouts, asked, watcher, out=out, write=write)
    if result is None:
        say("isotrain: interrupted before a pair was complete; nothing was written", err=True)
        raise typer.Exit(INTERRUPTED)
    compared = comparison(result)
    where = "" if path is None else f" and is kept in {path}"
    with kept(f"the measurement is complete{where}"):
        if shown_as == "json":
            say_json(result.document())
        elif shown_as == "table":
            print_comparison(compared, output_console())
        else:
            say_lines(COMPARISON_FORMATS[shown_as](compared).splitlines())
        if path is not None:
            say(f"result: {path}", err=shown_as != "table")
    raise typer.Exit(INTERRUPTED if result.status == "partial" else compared.code)
