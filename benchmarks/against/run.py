"""`isotrain bench --against` as a function: two checkouts, pairs of their processes, one verdict a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ... import UserError
from ...kernels.install import rebuild_hint
from ...kernels.words import count
from ..bench import Watcher
from ..harness.environment import describe
from ..harness.plan import END_TO_END, Options, Plan, make_plan
from ..harness.runner import WorkerRun
from ..harness.statistics import block_ratios, paired_interval
from ..outcome.against import AGAINST, Against, CheckoutResult, PairedTarget
from ..outcome.answers import answers_differ
from ..outcome.build import build_result, result_path, write_result
from ..outcome.limits import within_limits
from ..outcome.model import MeasuredTarget, Target, UnmeasuredTarget
from ..regression.verdict import REFUSED, judge
from .checkout import Checkout, library, native_parts
from .pairs import PairRun, prepared, run_pairs

# What a verdict needs.
LEAST_PAIRS, LEAST_BLOCKS = 3, 10


@dataclass(frozen=True)
class Asked:
    """What counts. gate: the smallest rise of time, as a share. on_undecided: fail, warn or pass."""

    gate: float
    on_undecided: str


def paired_plan(options: Options) -> Plan:
    """The plan whose processes are pairs. Raises UserError for what can't be measured in pairs."""
    if options.vs:
        raise UserError("--against compares two checkouts, --vs compares with baselines; give one of them")
    if END_TO_END in options.workloads:
        raise UserError(f"--against compares steps, not whole runs; drop --workload {END_TO_END}")
    return replace(make_plan(options), paired=True)


def run_against(
    plan: Plan,
    checkouts: tuple[Checkout, Checkout],
    asked: Asked,
    watcher: Watcher,
    *,
    out: Path | None = None,
    write: bool = True,
) -> tuple[Against | None, Path | None]:
    """Measures one checkout against another, and writes the result to `out`.

    Args:
        plan: Of `paired_plan`.
        checkouts: Before and after.
        asked: What counts.
        watcher: Told of each pair as of a process.
        out: A .json file or a folder, results/ by default.
        write: Whether the result is written.

    Returns:
        The result and where it was written; None where there is nothing, as after an interruption of the first pair.

    Raises:
        UserError: A checkout that measures something else; options that can't be used.
    """
    path = result_path(out, datetime.now(UTC), "against") if write else None
    machine = describe()
    pairs: list[PairRun] = []
    interrupted = False
    with prepared(*checkouts, plan.options) as sides:
        try:
            for ended in run_pairs(plan, sides, watcher.started):
                pairs.append(ended)
                watcher.ended(_summary(ended))
        except KeyboardInterrupt:
            interrupted = True
    if not any(pair.failed is None for pair in pairs):
        if interrupted:
            return None, None
        refused = [pair.failed for pair in pairs if pair.failed is not None]
        if all(run.user_error for run in refused):
            raise UserError(refused[0].error)
    whole = [
        build_result(plan, _runs(pairs, place), machine | {"git": _git(checkout)}, interrupted, paired=True)
        for place, checkout in enumerate(checkouts)
    ]
    before, after = (
        CheckoutResult(label=checkout.label, sources_sha256=checkout.sources, result=result)
        for checkout, result in zip(checkouts, whole, strict=True)
    )
    result = Against(
        schema=AGAINST,
        created=whole[1].created,
        status=whole[1].status if whole[0].status == "complete" else whole[0].status,
        notes=_notes(plan, pairs, checkouts),
        gate=asked.gate,
        on_undecided=asked.on_undecided,
        before=before,
        after=after,
        targets=[
            _paired(*sides, asked.gate, plan.options.seed, [pair for pair in pairs if pair.target == index])
            for index, sides in enumerate(zip(whole[0].targets, whole[1].targets, strict=True))
        ],
    )
    if path is not None:
        write_result(result, path)
    return result, path


def _runs(pairs: Sequence[PairRun], place: int) -> list[WorkerRun]:
    """One side's runs. Of a pair with a failed process, only that one: a block without its partner has no ratio."""
    found = (pair.runs[place] for pair in pairs)
    kept = zip(pairs, found, strict=True)
    return [run for pair, run in kept if run is not None and (pair.failed is None or run is pair.failed)]


def _git(checkout: Checkout) -> object:
    return checkout.git if isinstance(checkout.git, str) else checkout.git.document()


def _summary(pair: PairRun) -> WorkerRun:
    """A pair as a watcher is told of a process."""
    run = pair.failed or pair.runs[1]
    assert run is not None, "a pair without a failed process has both"
    return replace(run, seconds=pair.seconds)


def _paired(old: Target, new: Target, gate: float, seed: int, pairs: Sequence[PairRun]) -> PairedTarget:
    """What the blocks of one target say."""
    seconds = sum(pair.seconds for pair in pairs)

    def refused(reason: str) -> PairedTarget:
        return PairedTarget(
            label=old.label,
            time=None,
            cpu_time=None,
            ratios=[],
            verdict=REFUSED,
            reason=reason,
            detectable=None,
            seconds=seconds,
        )

    # If a process failed, its partner was ended because of it.
    for which, entry in sorted((("before", old), ("after", new)), key=lambda side: side[1].status != "failed"):
        if not entry.valid or isinstance(entry, UnmeasuredTarget):
            return refused(f"invalid {which}: {'; '.join(entry.reasons) or 'its pairs were not complete'}")
    assert isinstance(old, MeasuredTarget), "others are refused"
    assert isinstance(new, MeasuredTarget), "others are refused"
    for what, theirs, ours in (
        ("dtype", old.policy.label, new.policy.label),
        ("weights", old.model.sha256, new.model.sha256),
        ("batches" if old.module else "texts", old.data.sha256, new.data.sha256),
        ("module", old.model.code_sha256 or "", new.model.code_sha256 or ""),
    ):
        if theirs != ours:
            return refused(f"other {what} before ({theirs[:10]}) and after ({ours[:10]})")
    if wrong := answers_differ(old, new):
        return refused(wrong)
    ratios = block_ratios(new.text_seconds, old.text_seconds)
    time = within_limits(paired_interval(ratios, seed).rate(1.0), old, new).rate(1.0)
    cpu = [[process.cpu_step_seconds for process in target.processes] for target in (new, old)]
    has_cpu = all(value > 0.0 for side in cpu for process in side for value in process or [0.0])
    verdict = judge(time, gate, len(ratios), _lack(old), old.contended or new.contended)
    return PairedTarget(
        label=old.label,
        time=time,
        cpu_time=paired_interval(block_ratios(*cpu), seed) if has_cpu else None,
        ratios=ratios,
        verdict=verdict.outcome,
        reason=verdict.reason,
        detectable=verdict.detectable,
        seconds=seconds,
    )


def _lack(target: MeasuredTarget) -> str:
    few = len(target.processes) < LEAST_PAIRS or len(target.processes[0].step_seconds) < LEAST_BLOCKS
    return f"fewer than {LEAST_PAIRS} pairs of processes x {LEAST_BLOCKS} blocks" if few else ""


def _notes(plan: Plan, pairs: Sequence[PairRun], checkouts: Sequence[Checkout]) -> list[str]:
    notes = []
    if plan.options.module:
        notes.append(f"{plan.options.model} is the same file for both checkouts, which differ in isotrain alone")
    if checkouts[0].sources == checkouts[1].sources:
        notes.append("both checkouts have the same sources: any difference is one of the method")
    root = checkouts[1].root
    if unbuilt := [f"kernels/{name}" for name in native_parts(root) if not library(root, name).is_file()]:
        notes.append(
            f"no native library is built here of {' and '.join(unbuilt)}, and none is measured; build: {rebuild_hint()}"
        )
    for index, target in enumerate(plan.targets):
        own = [pair.runs[1] for pair in pairs if pair.target == index]
        warnings = [set(run.document.warnings) for run in own if run is not None and run.document is not None]
        if warnings:
            # What every process warns of is no chance, such as a kernel that can't run here.
            notes += [f"{target.label}: {warning}" for warning in sorted(set.intersection(*warnings))]
        restless = sum(pair.restless for pair in pairs if pair.target == index)
        if restless:
            notes.append(
                f"{target.label}: after {count(restless, 'block')} a process went on running while the other was timed"
            )
    return notes
