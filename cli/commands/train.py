"""`isotrain train`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...albert_core.processes.signals import stop_on_signals
from ...albert_core.terminal.console import say, say_lines
from ...albert_core.terminal.invocation import command, predict_command
from ..documents import print_json
from ..exits import Exit
from ..help import panel
from ..streams import kept

if TYPE_CHECKING:
    from ...albert_core.config.schema import TrainConfig
    from ...albert_core.loop.profile import Profile, StepProfiler
    from ...albert_core.loop.train import TrainResult
    from ...albert_core.runs.folder import RunFolder
    from ...benchmarks.reports.blocks import Table


_what, _again, _output = map(panel, ("What is run", "Continuing", "Output"))


def train(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]",
            help="YAML file, or a packaged one by name: quickstart, banking77, subj, mrpc, ...; or your own model: "
            "FILE.py:NAME, MODULE:NAME, or an installed workload.",
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        _what(
            "--set", metavar="KEY=VALUE", help="Override a key; may be repeated. `isotrain config --keys` lists them."
        ),
    ] = None,
    backend: Annotated[
        str | None, _what(help="Device: cpu, cuda, cuda:1, xla, tt. Wins over the configuration.")
    ] = None,
    resume: Annotated[
        Path | None,
        _again(
            metavar="RUN", help="Continue this run's folder; its own configuration is used when CONFIG is not given."
        ),
    ] = None,
    resume_or_start: Annotated[
        bool,
        _again(
            "--resume-or-start",
            help="Continue the run that run_name names if it exists, else start it; a complete run ends at once. For "
            "schedulers and restarts, which repeat one command line.",
        ),
    ] = False,
    threads: Annotated[int | None, _what(help="CPU threads.")] = None,
    profile: Annotated[
        int | None,
        _output(
            metavar="STEPS",
            help="Profile this many steps in the run's folder: a trace for https://ui.perfetto.dev, and what costs "
            "most.",
        ),
    ] = None,
    json_only: Annotated[bool, _output("--json", help="How the run ended, as JSON on stdout.")] = False,
) -> None:
    """Train the head on a frozen encoder, the whole model, or a model of your own, and evaluate it.

    Examples:

      isotrain train quickstart

      isotrain train configs/banking77.yaml --set dataset_id=my-data/ --set model_name=random:albert-base-v2

      isotrain train --resume runs/banking77-20260101-120000

      isotrain train my_model.py:TinyGPT --set num_epochs=3

      isotrain train banking77 --set run_name=nightly --resume-or-start

    Ctrl-C saves a checkpoint and prints the command that continues from it, bit for bit.
    """
    from ... import UserError
    from ...albert_core.processes.parent import stop_with_launcher

    stop_with_launcher()
    # torch reads it when it loads. Its warnings of a lost process are C++ stacks, and the run says it in one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    from ...albert_core.config.load import load_config
    from ...albert_core.output.profile import MOST_PROFILED
    from ...albert_core.runs.folder import open_run
    from ...kernels.names import check_range

    if config is None and resume is None:
        raise UserError(
            "no configuration given; name a YAML file, a packaged one (quickstart), your own model (FILE.py:NAME), or "
            "--resume RUN"
        )
    if resume is not None and resume_or_start:
        raise UserError(
            "--resume names a run that is there, --resume-or-start one by run_name that may be there; give one of them"
        )
    if profile is not None:
        check_range("--profile", profile, 1, MOST_PROFILED)
    run = open_run(resume) if resume is not None else None
    source = config if config is not None else (run.config if run else None)
    auto = ["resume_from_checkpoint=auto"] if resume_or_start else []
    resolved = load_config(source, [*(sets or ()), *auto], {"backend": backend, "threads": threads})
    if config is None and run is not None:
        # A run's own file has every key. Without these, the default data and model would be used instead.
        lost = [key for key in ("dataset_id", "model_name") if resolved.sources[key] == "default"]
        if lost:
            raise UserError(
                f"{run.config} has no {lost[0]}: it was emptied or cut short; copy the whole run folder again"
            )

    # Before the imports, which take seconds.
    with stop_on_signals():
        from ...albert_core.loop.train import resume_command
        from ...albert_core.loop.train import train as run_training
        from ...albert_core.output.live import reporter_for_terminal
        from ...albert_core.processes.ranks import launched

        repo = resolved.config.push_to_hub
        if repo is not None:
            from ...albert_core.inference.push import check_push

            check_push(repo)
        ranks = launched()
        first = ranks.first
        profiler = _profiler(profile) if first else None
        with reporter_for_terminal() if first else nullcontext() as reporter:
            result = run_training(resolved, resume=run, reporter=reporter, observer=profiler)
        done = f"stopped at step {result.step} of {result.total_steps}"
        if first:
            with kept(f"the run {result.status} and is kept in {result.run.path}"):
                if json_only:
                    print_json("run", {"run": str(result.run.path), **result.run.ended()})
                else:
                    _show(result)
                    if profiler is not None and profiler.profile is not None:
                        _show_profile(profiler.profile)
                    if result.status == "completed" and not result.before:
                        say_lines(["next:", *(f"  {command}" for command in _next_steps(result, resolved.config))])
                    if result.status == "stopped":
                        say(f"{done}; continue with: {resume_command(result.run, ranks)}")
            if repo is not None and result.status == "completed" and not result.before:
                _push(result.run, repo, json_only)
        if result.status == "collapsed" and not json_only:
            say(f"stopped by stop_on_collapse at step {result.step} of {result.total_steps}: {result.collapse}")
        raise typer.Exit(_code(result, resolved.config))


def _profiler(steps: int | None) -> StepProfiler | None:
    if steps is None:
        return None
    from ...albert_core.loop.profile import StepProfiler

    return StepProfiler(steps)


def _show_profile(profile: Profile) -> None:
    from ...benchmarks.reports.terminal import output_console, print_blocks
    from ...benchmarks.reports.views.profile import profile_view

    print_blocks(profile_view(profile, profile.device), output_console())
    say(f"profile: {profile.folder}  (open trace.json.gz in https://ui.perfetto.dev)")


def _push(run: RunFolder, repo: str, json_only: bool) -> None:
    """Sends a finished run to the Hub. Raises RunError, with the command that tries again, if that fails."""
    from ... import RunError, UserError
    from ...albert_core.inference.push import push_run

    try:
        pushed = push_run(run, repo)
    except (UserError, RunError) as error:
        again = command("push", str(run.path), repo)
        raise RunError(f"the run completed and is kept, but it was not sent: {error}; try again by {again}") from error
    say(f"sent to {pushed.url} (private)", err=json_only)


def _code(result: TrainResult, config: TrainConfig) -> Exit:
    """The exit code. A requested stop is a success."""
    if result.status == "collapsed":
        return Exit.FAILED
    asked = config.stop_at_step is not None and result.step >= config.stop_at_step
    return Exit.STOPPED if result.status == "stopped" and not asked else Exit.DONE


def _next_steps(result: TrainResult, config: TrainConfig) -> list[str]:
    """Commands to try on a finished run, ready to paste."""
    run = result.run.path
    backend = config.backend_name
    report = command("report", str(run.parent), "--open")
    if config.workload is not None:
        return [command("bench", config.workload, "--backend", backend), report]
    kernels = ["--quick", "--layout", "bucketed", "--kernel", "auto", "--kernel", "transformers"]
    others = [
        command(*words)
        for words in (
            ["bench", *kernels, "--backend", backend, "--model", config.model_name],
            ["parity", str(run / "config.yaml"), "--candidate", f"{backend}:bfloat16", "--steps", "20"],
        )
    ]
    return [predict_command(str(run), result.example), *others, report]


def _show(result: TrainResult) -> None:
    from ...benchmarks.reports.terminal import fitted, output_console

    if result.chart:
        from ...albert_core.output.run_chart import as_text, evaluation_chart
        from ...albert_core.runs.history import evaluations

        rows = evaluations(result.run)
        if len(rows) > 1:
            chart = evaluation_chart(rows, result.chart, f"{', '.join(result.chart)}: {result.label}")
            say_lines(as_text(chart).split("\n"))

    # Not the table's title, which would wrap at the table's width; a label must stay in one piece.
    already = " already, nothing was left to do" if result.before else ""
    say(f"{result.status}{already}: {result.label}")
    words, of = result.best_by.words, result.total_steps
    console = output_console()
    table = figures_table(result.metric_names, result.metrics, result.best, words, result.step, of, result.seconds)
    console.print(fitted(table, console))
    if result.best and result.best_checkpoint is None:
        kept = "keep_best_n and save_strategy say which are kept"
        say(f"no checkpoint holds the {words}, step {int(result.best['step'])}: {kept}")
    if result.early_stop:
        say(f"stopped early: {result.early_stop}; predict --checkpoint best takes the best weights")
    if result.collapse:
        say(f"COLLAPSED: {result.collapse}")
    model = ", model/" if result.status == "completed" else ""
    say(f"run: {result.run.path}  (metrics.jsonl, summary.json{model})")


def figures_table(
    names: Sequence[str],
    last: Mapping[str, float],
    best: Mapping[str, float],
    best_words: str,
    step: int,
    total_steps: int,
    seconds: float | None,
) -> Table[Any]:
    """A table of a run's last and best evaluation, with the metrics `names`."""
    from ...benchmarks.reports.blocks import Column, Table

    rows = [(name, *(f"{values[name]:.4f}" if name in values else "-" for values in (last, best))) for name in names]
    rows.append(("step", f"{step} of {total_steps}", f"{int(best['step'])}" if best else "-"))
    rows.append(("seconds", "-" if seconds is None else f"{seconds:.1f}", ""))
    columns: tuple[Column[Any], ...] = (
        Column("", itemgetter(0), numeric=False),
        Column("last", itemgetter(1)),
        Column(best_words, itemgetter(2)),
    )
    return Table("", columns, rows)
