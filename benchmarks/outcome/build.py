"""From the workers' documents to one result: figures with intervals, gates across targets, a file (rules 6, 7, 9)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from ... import UserError
from ...albert_core.runs.files import check_place, make_folders, sweep, write_json
from ...backends import caveat
from ...kernels.words import count
from ..harness import environment
from ..harness.document import Interval, Measured, Memory, Part, Peaks, Shape, Sweep, Timed, Work
from ..harness.plan import FULL_BLOCKS, FULL_PROCESSES, Options, Plan, hash_of
from ..harness.runner import WorkerRun
from ..harness.statistics import median_interval, outliers, quantile, two_modes
from . import answers, limits
from .gates import judged
from .model import (
    BENCH,
    Bench,
    BenchConfig,
    BenchMethod,
    Comparison,
    Energy,
    Environment,
    Figures,
    MeasuredTarget,
    Process,
    Relative,
    Spread,
    StepSeconds,
    Target,
    UnmeasuredTarget,
)
from .steadiness import steadiness

UNAVAILABLE = "unavailable"
# p99 of fewer values is the largest of them and says nothing.
LEAST_FOR_P99 = 100


def build_result(
    plan: Plan,
    runs: Sequence[WorkerRun],
    machine: dict[str, Any],
    interrupted: bool = False,
    sweeps: Mapping[int, Sweep] | None = None,
    paired: bool = False,
) -> Bench:
    """The whole result of what has run, every figure judged.

    machine: `environment.describe()` of the moment before the first process. sweeps: by target, the shapes that were
    tried and their speed. paired: the processes took turns with those of another result, so that blocks which weren't
    steady are no reason against it: what drifted for both cancels out of their ratio.
    """
    done: dict[int, list[WorkerRun]] = {index: [] for index in range(len(plan.targets))}
    for run in runs:
        done[run.target].append(run)
    peaks = _best_peaks(plan, runs)
    shapes = {index: found.sweep for index, found in (sweeps or {}).items()}
    targets = [
        _target(plan, index, done[index], shapes.get(index, []), peaks, paired) for index in range(len(plan.targets))
    ]
    targets = _related(judged(targets, [_documents(done[index]) for index in range(len(plan.targets))]), plan.options)
    failed = any(target.status == "failed" for target in targets)
    return Bench(
        schema=BENCH,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status="partial" if interrupted else "failed" if failed else "complete",
        valid=all(target.valid for target in targets if target.status != UNAVAILABLE),
        notes=_notes(plan),
        command=environment.command_line(),
        config=BenchConfig(**plan.options.config()),
        config_sha256=hash_of(plan.options.config()),
        method=BenchMethod(**plan.options.method()),
        environment=Environment.model_validate(machine),
        targets=targets,
        comparisons=compare(targets, plan.options.seed) if plan.options.vs else [],
    )


def write_result(result: Part, path: Path) -> None:
    """The result as JSON at `path`, whole or not at all. Raises as `written`."""
    make_folders(path.parent, "--out")
    sweep(path.parent)
    write_json(path, result.document())


def result_path(out: Path | None, now: datetime, kind: str = "bench") -> Path:
    """Where a result goes: `out` when it names a .json file, else a stamped file in that folder (default results/).

    Raises UserError, before anything is measured, for a place that can't be written to.
    """
    stamped = f"{kind}-{now.strftime('%Y%m%dT%H%M%SZ')}.json"
    folder = Path("results") if out is None else out
    path = folder if folder.suffix == ".json" else folder / stamped
    if path.is_dir():
        raise UserError(f"--out {str(path)!r} is a folder that ends in .json; give a file, or another folder")
    check_place(path, "--out")
    return path


def _best_peaks(plan: Plan, runs: Sequence[WorkerRun]) -> dict[tuple[str, str], Peaks]:
    """By backend and dtype: the best that any process of the run measured counts for all."""
    known: dict[tuple[str, str], list[Peaks]] = {}
    for run in runs:
        if run.document is not None:
            peaks = run.document.peaks
            known.setdefault((plan.targets[run.target].backend, peaks.dtype), []).append(peaks)
    return {key: limits.best(peaks) for key, peaks in known.items()}


def _with_step_copies(best: Peaks, own: Sequence[Peaks]) -> Peaks:
    """The run's peaks with the fastest copy of as many bytes as a target's step moves."""
    fastest = max(own, key=lambda one: one.step_copy_gbps)
    step = {"step_copy_gbps": fastest.step_copy_gbps, "step_copy_bytes": fastest.step_copy_bytes}
    return best.model_copy(update={**step, "contended": best.contended or all(one.contended for one in own)})


def _target(
    plan: Plan,
    index: int,
    runs: Sequence[WorkerRun],
    sweep: list[Shape],
    peaks: Mapping[tuple[str, str], Peaks],
    paired: bool,
) -> Target:
    """What came of one target's processes, as far as it can be said without the other targets."""
    spec, options = plan.targets[index], plan.options
    documents = _documents(runs)
    refused = plan.unavailable.get(index) or next((run.error for run in runs if run.user_error and spec.baseline), "")
    errors = [run.error for run in runs if run.document is None]
    known: dict[str, Any] = {
        "label": spec.label,
        **spec.as_dict(),
        "sweep": sweep,
        "config_sha256": hash_of({**options.config(), **spec.as_dict()}),
        "status": _status(len(documents), bool(errors), options.processes),
        "valid": False,
    }
    reasons, warnings = [f"a process {error}" for error in errors], []
    if refused:
        # Somebody else's program that isn't here is no fault of the measurement.
        return UnmeasuredTarget(**known | {"status": UNAVAILABLE}, reasons=[refused], warnings=[])
    if not documents:
        return UnmeasuredTarget(**known, reasons=reasons or ["no process of it was started"], warnings=[])
    if len(documents) < options.processes:
        warnings.append(f"{len(documents)} of {options.processes} processes ran")
    first = documents[0]
    samples = [document.step_seconds for document in documents]
    flat = [value for process in samples for value in process]
    reasons += _collected([document.reasons for document in documents])
    for what, hashes in (
        ("weights", {document.model.sha256 for document in documents}),
        ("data", {document.data.sha256 for document in documents}),
    ):
        if len(hashes) > 1:
            reasons.append(f"its {what} differ from process to process")
    warnings += _collected([document.warnings for document in documents])
    best = _with_step_copies(peaks[spec.backend, first.peaks.dtype], [document.peaks for document in documents])
    known |= {
        "kernel_used": first.kernel,
        "device": first.device,
        "policy": first.policy,
        "model": first.model,
        "data": first.data,
        "work": first.work,
        "n": len(flat),
        "phases": {name: _spread([document.phases[name] for document in documents]) for name in first.phases},
        "memory": Memory(
            peak_bytes=max(document.memory.peak_bytes for document in documents),
            scope=first.memory.scope,
            growth_bytes_per_step=_growth(documents),
        ),
        "peaks": best,
        "processes": [_process(run, run.document) for run in runs if run.document is not None],
        "contended_processes": [run.process for run in runs if run.document and run.document.environment.contended],
    }
    if not all(math.isfinite(value) and value > 0 for value in flat):
        return UnmeasuredTarget(**known, reasons=[*reasons, "a block took no time at all"], warnings=warnings)
    unsteady = steadiness(samples, [document.environment.contended for document in documents])
    (warnings if paired else reasons).extend(unsteady.reasons)
    warnings += unsteady.warnings
    groups = two_modes(samples)
    if groups is not None:
        fast, slow, slower = groups
        warnings.append(
            f"the blocks fall into two groups, {fast * 1e3:.3g} and {slow * 1e3:.3g} ms a step "
            f"({len(flat) - slower} and {slower} of the blocks): the median is that of whichever has more"
        )
    figures = _figures(median_interval(samples, options.seed), flat, first.work)
    return MeasuredTarget(
        **known,
        reasons=reasons,
        warnings=warnings,
        energy=_energy(documents, options.seed),
        outliers=[list(place) for place in outliers(samples)],
        figures=figures,
        probe=answers.kept(documents),
        profile=next((document.profile for document in documents if document.profile is not None), None),
        share_of_peak=None if caveat(spec.backend) else limits.share_of_peak(figures, best),
        roofline=limits.roofline(first.work, figures, best) if first.device.real else None,
        relative=None,
    )


def _process(run: WorkerRun, document: Measured) -> Process:
    """What a result keeps of a process."""
    kept = {name: getattr(document, name) for name in Timed.model_fields}
    return Process(process=run.process, wall_seconds=run.seconds, **kept)


def _growth(documents: Sequence[Measured]) -> float | None:
    """The median growth of the processes' memory; None where fewer than half of them grew."""
    grown = [document.memory.growth_bytes_per_step or 0.0 for document in documents]
    return median(grown) or None


def _status(complete: int, failed: bool, wanted: int) -> str:
    if failed:
        return "failed"
    return "complete" if complete == wanted else "partial" if complete else "not run"


def _figures(step: Interval, flat: Sequence[float], work: Work) -> Figures:
    """Every figure is work a step over seconds a step, so they all share one interval."""
    return Figures(
        **rates(step, work),
        step_seconds=StepSeconds(
            **step.given(),
            p50=quantile(flat, 0.5),
            p90=quantile(flat, 0.9),
            p99=quantile(flat, 0.99) if len(flat) >= LEAST_FOR_P99 else None,
        ),
    )


def rates(seconds: Interval, work: Work) -> dict[str, Interval]:
    """The figures of `Rates`: work over seconds. They share the interval of the seconds."""
    amounts = {
        "samples_per_second": work.samples,
        "real_tokens_per_second": work.real_tokens,
        "padded_tokens_per_second": work.padded_tokens,
        "model_tflops": work.model_flops / 1e12,
        "hardware_tflops": work.hardware_flops / 1e12,
    }
    return {name: seconds.rate(amount) for name, amount in amounts.items() if amount is not None}


def _energy(documents: Sequence[Measured], seed: int) -> Energy:
    """Joules a text with their interval, or why there are none. Whatever else ran on the device is included."""
    for document in documents:
        if not document.energy.block_joules:
            return Energy(source=document.energy.source, joules_per_sample=None, n=0)
    samples = [
        [joules / document.steps_per_block / document.work.samples for joules in document.energy.block_joules]
        for document in documents
    ]
    blocks = sum(len(process) for process in samples)
    if min(map(min, samples)) <= 0.0:
        return Energy(source="unavailable: the counter stood still during a block", joules_per_sample=None, n=blocks)
    return Energy(source=documents[0].energy.source, joules_per_sample=median_interval(samples, seed), n=blocks)


def _collected(found: Sequence[Sequence[str]]) -> list[str]:
    """The distinct texts of all processes, in order. With several processes, each text names its processes."""
    texts: dict[str, list[int]] = {}
    for process, said in enumerate(found):
        for text in said:
            texts.setdefault(text, []).append(process)
    several = len(found) > 1
    return [
        f"{text} (process {', '.join(str(process + 1) for process in processes)})" if several else text
        for text, processes in texts.items()
    ]


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median=median(values), min=min(values), max=max(values))


def _documents(runs: Sequence[WorkerRun]) -> list[Measured]:
    return [run.document for run in runs if run.document is not None]


def _related(targets: Sequence[Target], options: Options) -> list[Target]:
    """The targets with their speed relative to the first one of the same workload and batch size, with its interval.

    Baselines have their own batch sizes: against them, all targets are relative to the first. Real devices and others
    are never held against each other.
    """
    references: dict[tuple[str, int, bool], MeasuredTarget] = {}
    related: list[Target] = []
    for target in targets:
        if isinstance(target, MeasuredTarget):
            alike = (target.workload, 0 if options.vs else target.batch_size, target.real)
            reference = references.setdefault(alike, target)
            if reference is not target:
                ratio = limits.speed_ratio(reference, target, options.seed)
                target = target.model_copy(update={"relative": Relative(to=reference.label, **ratio.given())})
        related.append(target)
    return related


def compare(targets: Sequence[Target], seed: int) -> list[Comparison]:
    """How many times as fast as each baseline each of this project's kernels is; invalid where either of the two is."""
    measured = [target for target in targets if isinstance(target, MeasuredTarget)]
    return [
        Comparison(
            own=own.label,
            baseline=baseline.label,
            ratio=limits.speed_ratio(baseline, own, seed),
            valid=own.valid and baseline.valid,
        )
        for own in measured
        if not own.baseline
        for baseline in measured
        if baseline.baseline
    ]


def backend_notes(backends: Iterable[str]) -> list[str]:
    """What must be said of every figure of these backends: of those that only emulate a device."""
    return [
        f"{said}: every time and rate is the host's, never a card's; there is no share of a card's peak"
        for said in dict.fromkeys(map(caveat, backends))
        if said
    ]


def _notes(plan: Plan) -> list[str]:
    options = plan.options
    notes = [*backend_notes(spec.backend for spec in plan.targets), *plan.skipped]
    if options.workloads == ("full_step",) and options.vs:
        notes.append("everyone trains the same weights on the same texts, in the same batches")
    elif options.vs:
        notes.append(
            f"everyone runs the same {count(options.texts or 0, 'text')}, each in its own shape"
            + ("; --quick takes each one's first shape without a sweep" if options.quick else ", the best of a sweep")
        )
    if options.processes == 1 and not options.quick:
        notes.append("one process: the intervals are within that process, another process may lie outside")
    if options.processes < FULL_PROCESSES or options.blocks < FULL_BLOCKS:
        notes.append(
            f"{options.processes} x {count(options.blocks, 'block')} a target; figures to be compared need at least "
            f"{FULL_PROCESSES} processes x {FULL_BLOCKS} blocks"
        )
    return notes
