"""A result as tables on a terminal. Figures of an invalid target are shown as such, never as a result."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...albert_core.terminal.console import new_console
from ...albert_core.terminal.text import duration, figure
from ...kernels.words import count
from ..harness.document import Peaks
from ..harness.plan import Plan
from ..outcome.model import Bench, MeasuredTarget, Target
from .columns import (
    INTERVAL,
    MODEL_SHARE,
    MODEL_TFLOPS,
    PHASE_COLUMNS,
    ROOF_COLUMNS,
    SAMPLES,
    UNIT_SHARE,
    Column,
    rate,
    throughput_columns,
)
from .fit import fitted

# The width that all columns need; a narrower terminal gets fewer, a file or pipe always gets all.
WIDE = 130


def output_console(*, width: int | None = None) -> Console:
    """A console for tables: as wide as `width`, or COLUMNS, or the terminal; wide enough in a file or a pipe."""
    console = new_console(width=width)
    told = width is not None or "COLUMNS" in os.environ
    return console if told or console.is_terminal else new_console(width=WIDE)


def print_result(result: Bench, console: Console) -> None:
    """Title, throughput, phases, then everything that qualifies the figures."""
    for line in title(result):
        console.print(Text(line, style="bold"))
    for line in banners(result):
        console.print(Text(line, style="bold red" if line.partition(":")[0].isupper() else "yellow"))
    measured = result.measured
    if measured:
        has_p99 = any(target.figures.step_seconds.p99 for target in measured)
        has_unit = any(target.share_of_peak is not None and target.share_of_peak.unit for target in measured)
        against = comparison_columns(result)
        columns = against or throughput_columns(has_p99)
        if has_unit:
            columns = [*columns, UNIT_SHARE]
        for name, shown in (
            ("against baselines" if against else "throughput", columns),
            ("hardware, phases, memory", PHASE_COLUMNS),
            ("under the roof, energy", ROOF_COLUMNS),
        ):
            console.print(fitted(_table(name, result, shown, console.width), console))
        if console.width < WIDE:
            console.print(Text(f"more columns from {WIDE} characters on; all of them are in the JSON"))
        for line in best_baselines(result) + _peaks(result) + _energy_sources(result):
            console.print(Text(line))
    for remark in _remarks(result):
        console.print(remark)


def print_plan(plan: Plan, console: Console) -> None:
    """What would run, in its order, and how long that takes at least."""
    table = Table(title="plan", title_justify="left")
    for name in ("#", "target", "process"):
        table.add_column(name, justify="left" if name == "target" else "right")
    for place, (target, process) in enumerate(plan.order, start=1):
        table.add_row(str(place), plan.targets[target].label, f"{process + 1} of {plan.options.processes}")
    console.print(fitted(table, console))
    for line in plan.skipped:
        console.print(Text(f"left out: {line}"))
    for target, shapes in plan.candidates.items():
        listed = ", ".join(f"{shape.layout} x{shape.batch_size}" for shape in shapes)
        console.print(Text(f"before that, a sweep picks the shape of {plan.targets[target].kernel}: {listed}"))
    for target, reason in plan.unavailable.items():
        console.print(Text(f"unavailable: {plan.targets[target].kernel}: {reason}"))
    options = plan.options
    console.print(
        Text(
            f"{count(len(plan.order), 'process')}, each {count(options.blocks, 'block')} in about "
            f"{options.seconds:g} s after a warm-up: about {duration(plan.least_seconds)}, longer where a step takes "
            "longer than its share"
        )
    )


def _device(target: MeasuredTarget) -> str:
    """A target's backend, device and threads."""
    threads = count(target.processes[0].environment.threads.intra_op, "thread")
    return f"{target.backend} ({target.device.name}, {threads})"


def title(result: Bench) -> list[str]:
    """What was measured, on what: backend, device, dtype policy, model, data."""
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
        f"model {measured[0].model.label}; data {data.name}, lengths mean {data.mean_length:.1f}, "
        f"padded to {config.max_length}" + "".join(f"; kernel {kernel}" for kernel in kernels),
    ]


def banners(result: Bench) -> list[str]:
    """What a reader must see before any figure."""
    lines = []
    if result.status == "partial":
        lines.append("PARTIAL: the run was interrupted; these targets are what was complete")
    if result.status == "failed":
        lines.append("FAILED: a process did not end well; its target has no figures or fewer")
    if not result.valid and any(not target.valid for target in result.measured):
        lines.append("INVALID: figures marked so must not be used; the reasons are below")
    measured = result.measured
    of_host = dict.fromkeys(target.backend for target in measured if not target.real)
    if of_host:
        lines.append(
            f"EMULATED: {', '.join(of_host)} is arithmetic on this host; its times are the host's and say nothing "
            "about a card's speed"
        )
    contended = [_name(target, result) for target in measured if target.contended]
    if contended:
        lines.append(
            f"BUSY MACHINE: other work used the CPUs while {len(contended)} of {len(measured)} targets were measured; "
            f"their figures are too slow and too scattered: {', '.join(contended)}"
        )
    if result.method.quick:
        lines.append(f"quick: {_thoroughness(result)} a target; {_reach(result)}")
    return lines


def _thoroughness(result: Bench) -> str:
    return f"{count(result.method.processes, 'process')} of {count(result.method.blocks, 'block')} at most"


def _reach(result: Bench) -> str:
    if result.method.processes == 1:
        return "intervals are within one process; another process may lie outside"
    return "intervals are over processes"


def _has_baselines(result: Bench) -> bool:
    return any(target.baseline for target in result.targets)


def comparison_columns(result: Bench) -> list[Column[MeasuredTarget]]:
    """A column for each of this project's kernels: how many times as fast as the row it is; none without baselines."""
    if not _has_baselines(result):
        return []
    owns = [target for target in result.measured if not target.baseline]

    def ratio(own: MeasuredTarget) -> Callable[[MeasuredTarget], str]:
        found = {one.baseline: one for one in result.comparisons if one.own == own.label}

        def cell(target: MeasuredTarget) -> str:
            one = found.get(target.label)
            if one is None:
                return "1" if target is own else ""
            text = f"{one.ratio.median:.2f}x\n({one.ratio.low:.2f} to {one.ratio.high:.2f})"
            return text if one.valid else f"invalid\n{text}"

        return cell

    return [
        SAMPLES,
        INTERVAL,
        Column("real\ntokens/s", rate(lambda rates: rates.real_tokens_per_second)),
        *(Column(f"{own.kernel} is\nfaster by", ratio(own), narrow=True) for own in owns),
        replace(MODEL_TFLOPS, narrow=False),
        replace(MODEL_SHARE, narrow=False),
        Column("padding", lambda target: f"{1 - target.work.real_tokens / target.work.padded_tokens:.0%}"),
        Column("computes\nin", lambda target: target.policy.compute),
    ]


def best_baselines(result: Bench) -> list[str]:
    """For each of this project's kernels, its ratio to the fastest baseline that is valid."""
    lines = []
    labels = {target.label: target for target in result.targets}
    for own in dict.fromkeys(one.own for one in result.comparisons):
        valid = [one for one in result.comparisons if one.own == own and one.valid]
        if valid:
            best = min(valid, key=lambda one: one.ratio.median)
            ratio = f"{best.ratio.median:.2f} times ({best.ratio.low:.2f} to {best.ratio.high:.2f})"
            baseline = _name(labels[best.baseline], result)
            lines.append(f"{labels[own].kernel} has {ratio} the speed of the best baseline, {baseline}")
    return lines


def _table(name: str, result: Bench, columns: Sequence[Column[MeasuredTarget]], width: int) -> Table:
    random = any(target.model.random_weights for target in result.targets if target.model is not None)
    table = Table(
        title=f"{name} (random weights)" if random else name,
        title_justify="left",
        box=SIMPLE_HEAD if width >= WIDE else None,
        pad_edge=False,
    )
    shown = [column for column in columns if column.narrow or width >= WIDE]
    table.add_column("target", overflow="fold")
    for column in shown:
        table.add_column(column.header, justify="right", overflow="fold")
    best = fastest(result)
    for target in result.targets:
        name = _name(target, result)
        if not isinstance(target, MeasuredTarget):
            table.add_row(name, Text(_lack(target).upper(), style="red"))
        elif target.valid:
            style = "green" if target.label in best else ""
            table.add_row(name, *(column.cell(target) for column in shown), style=style)
        else:
            table.add_row(f"INVALID {name}", *(column.cell(target) for column in shown), style="red")
    return table


def fastest(result: Bench) -> set[str]:
    """The labels of the valid targets with the most samples/s of their workload, where it has others."""
    found = set()
    for workload in {target.workload for target in result.targets}:
        valid = [one for one in result.measured if one.workload == workload and one.valid and one.real]
        if len(valid) > 1:
            found.add(max(valid, key=lambda one: one.figures.samples_per_second.median).label)
    return found


def _lack(target: Target) -> str:
    """What is wrong with a target that has reasons, in a word or two."""
    return target.status if target.status in ("failed", "not run", "unavailable") else "invalid"


def _name(target: Target, result: Bench) -> str:
    """The target's label, without what is the same for all of them and stands in the title."""
    if _has_baselines(result):
        return f"{target.kernel} {target.layout} x{target.batch_size}"
    keep = not target.real or len({one.backend for one in result.targets}) > 1
    return target.label if keep else target.label.removeprefix(f"{target.backend} ")


def _peaks(result: Bench) -> list[str]:
    lines = {}
    for target in result.measured:
        lines[target.backend, target.peaks.dtype] = peak_line(target.backend, target.peaks, real=target.real)
    return list(lines.values())


def peak_line(backend: str, peaks: Peaks, *, real: bool) -> str:
    """A device's limits as they were measured, and as its vendor states them."""
    vendor = [
        "n/a" if value is None else f"{figure(value)} {unit}"
        for value, unit in ((peaks.vendor_tflops, "TFLOP/s"), (peaks.vendor_gbps, "GB/s"))
    ]
    unit = peaks.unit
    alone = (
        ""
        if unit is None
        else (
            f"; its {unit.unit} unit fed from {unit.fed_from} with {count(unit.threads, 'thread')}: "
            f"{figure(unit.tflops)} TFLOP/s"
        )
    )
    whose = backend if real else f"{backend}: this host's"
    contended = "; other work contended that, the true peak is higher" if peaks.contended else ""
    return (
        f"{whose} peak in {peaks.dtype}, measured in this run: {figure(peaks.matmul_tflops)} TFLOP/s, copy "
        f"{figure(peaks.copy_gbps)} GB/s; the vendor's figures: {vendor[0]}, {vendor[1]}{alone}{contended}"
    )


def _energy_sources(result: Bench) -> list[str]:
    """Where joules come from, or why there are none, by backend."""
    sources = dict.fromkeys((target.backend, target.energy.source) for target in result.measured)
    return [f"energy of {backend}: {source}" for backend, source in sources]


def shapes_tried(target: Target) -> list[Text]:
    """What the sweep of a target's shapes found, and how a baseline was set up."""
    notes = "; ".join(target.kernel_used.notes) if target.kernel_used is not None else ""
    lines = [Text(f"{target.kernel}: {notes}")] if notes else []
    if target.sweep:
        tried = ", ".join(
            f"{one.layout} x{one.batch_size} "
            + (f"({one.error})" if one.samples_per_second is None else f"{figure(one.samples_per_second)}/s")
            for one in target.sweep
        )
        lines.append(Text(f"{target.kernel}: best of its shapes is {target.layout} x{target.batch_size}: {tried}"))
    return lines


def _remarks(result: Bench) -> list[Text]:
    """Reasons by target, warnings of one kind together, then the run's notes."""
    lines = []
    for target in result.targets:
        style = "yellow" if target.status == "unavailable" else "red"
        lines += [Text(f"{_lack(target)}: {target.label}: {reason}", style=style) for reason in target.reasons]
    for target in result.targets:
        lines += shapes_tried(target)
    kinds: dict[str, list[str]] = {}
    for target in result.targets:
        for warning in target.warnings:
            # Warnings of one kind differ in their numbers alone.
            kinds.setdefault(re.sub(r"[\d.]+", "", warning), []).append(f"{_name(target, result)}: {warning}")
    for first, *others in kinds.values():
        likewise = f"; {len(others)} other target{'s' * (len(others) > 1)} likewise" if others else ""
        lines.append(Text(f"note: {first}{likewise}"))
    return lines + [Text(f"note: {note}") for note in result.notes]
