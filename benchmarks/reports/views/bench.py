"""A bench result as blocks. Figures of an invalid target are marked as invalid. Rules 7 and 10."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ....albert_core.terminal.text import figure
from ....kernels.words import count
from ...harness.document import Data, Peaks
from ...outcome.model import Bench, BenchConfig, Comparison, MeasuredTarget, Target
from ..blocks import Block, Column, Heading, Table, Words
from .columns import (
    COMPUTES_IN,
    INTERVAL,
    MODEL_SHARE,
    MODEL_TFLOPS,
    P50,
    P90,
    P99,
    PADDING,
    PHASES,
    RELATIVE,
    ROOFLINE,
    SAMPLES,
    TARGET_TOKENS,
    UNIT_SHARE,
    of_targets,
)
from .labels import bench_tags, titled, verdict
from .profile import profile_view

Ratio = Column[Comparison]


def bench_view(result: Bench) -> list[Block]:
    """Title, throughput, phases, then everything that qualifies the figures."""
    blocks: list[Block] = [*map(Heading, _title(result)), *banners(result)]
    if result.measured:
        blocks += [
            _table("Throughput", result, _throughput(result)),
            *comparisons(result),
            _table("Hardware, phases, memory", result, PHASES),
            _table("Under the roof, energy", result, ROOFLINE),
            *map(Words, _best_baselines(result)),
            *map(Words, dict.fromkeys(peak_words(one.backend, one.peaks, one.real) for one in result.measured)),
            *energy_sources(result),
        ]
    for target in result.targets:
        blocks += [Words(f"{verdict(target)}: {target.name}: {why}", target_style(target)) for why in target.reasons]
    return [*blocks, *profiles(result), *_notes(result)]


def _throughput(result: Bench) -> list[Column[MeasuredTarget]]:
    steps = [target.figures.step_seconds for target in result.measured]
    shares = [target.share_of_peak for target in result.measured]
    return [
        SAMPLES,
        INTERVAL,
        *([TARGET_TOKENS, PADDING, COMPUTES_IN] if _has_baselines(result) else [RELATIVE, TARGET_TOKENS, P50, P90]),
        *([P99] if any(step.p99 for step in steps) else []),
        MODEL_TFLOPS,
        MODEL_SHARE,
        *([UNIT_SHARE] if any(share is not None and share.unit for share in shares) else []),
    ]


def _table(name: str, result: Bench, columns: Sequence[Column[MeasuredTarget]]) -> Table[Target]:
    best = _fastest(result)

    def named(target: Target) -> str:
        return short_name(target, result) if target.valid else f"{verdict(target).upper()} {short_name(target, result)}"

    def style(target: Target) -> str:
        return "green" if target.label in best else target_style(target)

    head = Column("target", named, numeric=False)
    table = Table(titled(name, bench_tags(result)), (head, *of_targets(columns)), result.targets, style)
    return table.without_empty_columns()


def target_style(target: Target) -> str:
    return "" if target.valid else "yellow" if target.status == "unavailable" else "red"


def comparisons(result: Bench) -> list[Block]:
    """How many times as fast as each baseline each of our kernels is; none without baselines."""
    names = {target.label: short_name(target, result) for target in result.targets}
    columns = (
        Ratio("ours", lambda one: names.get(one.own, one.own), numeric=False),
        Ratio("baseline", lambda one: names.get(one.baseline, one.baseline), numeric=False),
        Ratio("ours is faster by", lambda one: f"{one.ratio.median:.2f}x"),
        Ratio("95 % interval", lambda one: one.ratio.words()),
        Ratio("valid", lambda one: "valid" if one.valid else "invalid", numeric=False),
    )
    caption = titled("Against baselines", bench_tags(result))
    table = Table(caption, columns, result.comparisons, lambda one: "" if one.valid else "red")
    return [table] if result.comparisons else []


def _device(target: MeasuredTarget) -> str:
    """A target's backend, device and threads."""
    threads = count(target.processes[0].environment.threads.intra_op, "thread")
    return f"{target.backend} ({target.device.name}, {threads})"


def _title(result: Bench) -> list[str]:
    """What was measured, and where: backend, device, dtype policy, model, data."""
    # The first target's device stands for all; a baseline's own dtype stands in its note.
    measured = [target for target in result.measured if not target.baseline]
    config = result.config
    if not measured:
        return [f"isotrain bench: {config.model}, {config.dtype}"]
    devices = dict.fromkeys(f"{_device(target)}, {target.policy.label}" for target in measured)
    data = measured[0].data
    kernels = dict.fromkeys(
        f"{target.kernel} is {target.kernel_used.name} {target.kernel_used.version}"
        for target in measured
        if target.kernel != target.kernel_used.name
    )
    return [
        f"isotrain bench: {'; '.join(devices)}",
        f"model {measured[0].model.label}; data {data.name}, {_sizes(data, config)}"
        + "".join(f"; kernel {kernel}" for kernel in kernels),
    ]


def _sizes(data: Data, config: BenchConfig) -> str:
    """The lengths of texts, or how many batches a module's own are."""
    if data.mean_length is None:
        return f"{count(data.texts, 'sample')} in {count(config.batches, 'batch')} at most"
    return f"lengths mean {data.mean_length:.1f}, padded to {config.max_length}"


def banners(result: Bench) -> list[Words]:
    """Warnings to read before the figures."""
    measured = result.measured
    lines = []
    if result.status == "partial":
        lines.append("PARTIAL: the run was interrupted; these targets are what was complete")
    if result.status == "failed":
        lines.append("FAILED: a process did not end well; its target has no figures or fewer")
    if not result.valid and any(not target.valid for target in measured):
        lines.append("INVALID: figures marked so must not be used; the reasons are below")
    of_host = dict.fromkeys(target.backend for target in measured if not target.real)
    if of_host:
        lines.append(
            f"EMULATED: {', '.join(of_host)} is arithmetic on this host; its times are the host's and say nothing "
            "about a card's speed"
        )
    contended = [short_name(target, result) for target in measured if target.contended]
    if contended:
        lines.append(
            f"BUSY MACHINE: other work used the CPUs while {len(contended)} of {len(measured)} targets were measured; "
            f"their figures are too slow and too scattered: {', '.join(contended)}"
        )
    loud = [Words(line, "bold red") for line in lines]
    return loud + ([Words(f"quick: {thoroughness(result)}", "yellow")] if result.method.quick else [])


def thoroughness(result: Bench) -> str:
    """How much was measured, and what the intervals cover."""
    if result.method.processes == 1:
        reach = "intervals are within one process; another process may lie outside"
    else:
        reach = "intervals are over processes"
    method = result.method
    return f"{count(method.processes, 'process')} of {count(method.blocks, 'block')} at most a target; {reach}"


def _has_baselines(result: Bench) -> bool:
    return any(target.baseline for target in result.targets)


def _best_baselines(result: Bench) -> list[str]:
    """For each of this project's kernels, its ratio to the fastest baseline that is valid."""
    lines = []
    labels = {target.label: target for target in result.targets}
    for own in dict.fromkeys(one.own for one in result.comparisons):
        valid = [one for one in result.comparisons if one.own == own and one.valid]
        if valid:
            best = min(valid, key=lambda one: one.ratio.median)
            ratio = f"{best.ratio.median:.2f} times ({best.ratio.low:.2f} to {best.ratio.high:.2f})"
            baseline = short_name(labels[best.baseline], result)
            lines.append(f"{labels[own].named_kernel} has {ratio} the speed of the best baseline, {baseline}")
    return lines


def _fastest(result: Bench) -> set[str]:
    """The labels of the fastest valid targets of the workloads with several targets."""
    found = set()
    for workload in {target.workload for target in result.targets}:
        valid = [one for one in result.measured if one.workload == workload and one.valid and one.real]
        if len(valid) > 1:
            found.add(max(valid, key=lambda one: one.figures.samples_per_second.median).label)
    return found


def short_name(target: Target, result: Bench) -> str:
    """The target's label without what all targets share, which is in the title."""
    if _has_baselines(result):
        return f"{target.named_kernel} {target.layout} x{target.batch_size}"
    keep = not target.real or len({one.backend for one in result.targets}) > 1
    return target.label if keep else target.label.removeprefix(f"{target.backend} ")


def peak_words(backend: str, peaks: Peaks, real: bool) -> str:
    """A device's measured limits, and the vendor's figures."""
    vendor = ", ".join(
        "n/a" if value is None else f"{figure(value)} {unit}"
        for value, unit in ((peaks.vendor_tflops, peaks.rate), (peaks.vendor_gbps, "GB/s"))
    )
    unit, alone = peaks.unit, ""
    if unit is not None:
        threads = count(unit.threads, "thread")
        alone = f"; its {unit.unit} unit fed from {unit.fed_from} with {threads}: {figure(unit.tflops)} {peaks.rate}"
    owner = backend if real else f"{backend}: this host's"
    contended = "; other work contended that, the true peak is higher" if peaks.contended else ""
    return (
        f"{owner} peak in {peaks.dtype}, measured in this run: {figure(peaks.matmul_tflops)} {peaks.rate}, "
        f"copy {figure(peaks.copy_gbps)} GB/s; the vendor's figures: {vendor}{alone}{contended}"
    )


def energy_sources(result: Bench) -> list[Words]:
    """Where joules come from, or why there are none, by backend."""
    sources = dict.fromkeys((target.backend, target.energy.source) for target in result.measured)
    return [Words(f"energy of {backend}: {source}") for backend, source in sources]


def profiles(result: Bench) -> Iterator[Block]:
    """What steps of each target cost, if they were profiled."""
    for target in result.measured:
        if target.profile is not None:
            yield from profile_view(target.profile, f"{target.name}, trace {target.profile.trace}")


def shapes_tried(target: Target) -> list[str]:
    """What the sweep of a target's shapes found, how a baseline was set up, and what a kernel was made of."""
    used = target.kernel_used
    notes = "; ".join(used.notes) if used is not None else ""
    lines = [f"{target.named_kernel}: {notes}"] if notes else []
    lines += [f"{target.named_kernel}: {choice.line()}" for choice in (used.choices if used is not None else [])]
    if target.sweep:
        tried = ", ".join(
            f"{one.layout} x{one.batch_size} "
            + (f"({one.error})" if one.samples_per_second is None else f"{figure(one.samples_per_second)}/s")
            for one in target.sweep
        )
        lines.append(f"{target.named_kernel}: best of its shapes is {target.layout} x{target.batch_size}: {tried}")
    return lines


def _notes(result: Bench) -> list[Block]:
    """The shapes that were tried, warnings of one kind together, then the run's notes."""
    lines = [line for target in result.targets for line in shapes_tried(target)]
    kinds: dict[str, list[str]] = {}
    for target in result.targets:
        for warning in target.warnings:
            # Warnings of one kind differ in their numbers alone.
            kinds.setdefault(re.sub(r"[\d.]+", "", warning), []).append(f"{short_name(target, result)}: {warning}")
    for first, *others in kinds.values():
        likewise = f"; {count(len(others), 'other target')} likewise" if others else ""
        lines.append(f"note: {first}{likewise}")
    return [Words(line) for line in (*lines, *(f"note: {note}" for note in result.notes))]
