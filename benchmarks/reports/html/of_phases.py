"""The seconds outside of steps: importing, opening, loading, compiling. Rule 3."""

from __future__ import annotations

from collections.abc import Sequence

from ....albert_core.output.charts import Stack, StackedChart
from ...outcome.end_to_end import WholeProcess
from ...outcome.model import Bench, MeasuredTarget
from ...outcome.training_run import RunSummary
from ..blocks import Section
from ..views.end_to_end import side_words
from ..views.labels import bench_tags, joined, titled, whole_tags
from .loading import Found, Results
from .of_runs import run_name, run_tags

# The phases before the steady state. Its own duration is a setting and not shown.
PHASES = ("import", "open", "load", "data", "prepare", "first_step", "warm_up")
HOST = "this host's seconds"


def phases(results: Results) -> Section:
    """Seconds by phase: of bench targets up to their steady state, of end-to-end runs and of training runs."""
    section = Section("phases", "Phases", folded=True)
    for index, found in enumerate(results.bench):
        targets = [target for target in found.document.measured if target.phases]
        if targets:
            section.blocks.append(_phases(found, targets, f"phases-{index}"))
    for index, whole in enumerate(results.end_to_end_runs):
        firsts = [(side, side.processes[0]) for side in whole.document.sides if side.processes]
        stacks = [
            _whole_stack(side.name, first, side_words(side))
            for side, first in firsts
            if isinstance(first, WholeProcess) and first.phases
        ]
        if stacks:
            title = titled("Phases of end-to-end runs", whole_tags(whole.document))
            section.blocks.append(_stacked(f"whole-phases-{index}", title, whole.path, stacks))
    ended = [(run, run.document.summary) for run in results.runs]
    stacks = [
        _whole_stack(run_name(run), summary, "" if run.document.record.device.real else HOST)
        for run, summary in ended
        if summary is not None and summary.phases
    ]
    if stacks:
        title = titled("Phases of training runs", run_tags(results.runs))
        section.blocks.append(_stacked("training-phases", title, "Runs that have ended, from start to end.", stacks))
    return section


def _phases(found: Found[Bench], targets: Sequence[MeasuredTarget], key: str) -> StackedChart:
    stacks = [
        Stack(
            target.name,
            _seconds(target),
            joined(["" if target.valid else "invalid", "" if target.real else HOST], ", "),
        )
        for target in targets
    ]
    words = f"{found.path}: from the start of a process to its steady state, medians over processes."
    return _stacked(key, titled("Phases", bench_tags(found.document)), words, stacks)


def _seconds(target: MeasuredTarget) -> dict[str, float]:
    """Seconds of each phase up to the steady state, with compilations during the warm-up as a separate part."""
    seconds = {phase: target.phases[phase].median for phase in PHASES if phase in target.phases}
    compiling = target.phases.get("later_compiles")
    if compiling is not None and "warm_up" in seconds:
        seconds |= {"later_compiles": compiling.median, "warm_up": max(0.0, seconds["warm_up"] - compiling.median)}
    return {phase.replace("_", " "): value for phase, value in seconds.items()}


def _stacked(key: str, title: str, words: str, stacks: Sequence[Stack]) -> StackedChart:
    """A chart of stacks with all their parts, in the order of first appearance."""
    parts = tuple(dict.fromkeys(part for stack in stacks for part, value in stack.parts.items() if value > 0))
    return StackedChart(key, title, words, "seconds", parts, tuple(stacks))


def _whole_stack(name: str, run: WholeProcess | RunSummary, words: str) -> Stack:
    """The phases of an end-to-end run, and the rest of its seconds."""
    parts = {phase.replace("_", " "): seconds for phase, seconds in run.phases.items()}
    rest = (run.seconds or 0.0) - sum(parts.values())
    return Stack(name, parts | {"steps, evaluation, rest": max(0.0, rest)}, words)
