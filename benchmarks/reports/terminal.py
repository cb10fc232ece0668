"""A result as tables on a terminal. Figures of an invalid target are shown as such, never as a result."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...albert_core.terminal.console import new_console
from ...albert_core.terminal.text import duration, figure
from ...backends import device_label
from ...kernels.words import count
from ..harness.plan import Plan
from ..outcome.gates import is_contended, measured_entries
from .columns import (
    PHASE_COLUMNS,
    ROOF_COLUMNS,
    UNIT_COLUMN,
    Column,
    interval_cell,
    rate,
    share,
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


def print_result(result: dict[str, Any], console: Console) -> None:
    """Title, throughput, phases, then everything that qualifies the figures."""
    for line in title(result):
        console.print(Text(line, style="bold"))
    for line in banners(result):
        console.print(Text(line, style="bold red" if line.partition(":")[0].isupper() else "yellow"))
    measured = measured_entries(result["targets"])
    if measured:
        has_p99 = any(entry["figures"]["step_seconds"]["p99"] for entry in measured)
        has_unit = any("unit" in (entry["share_of_peak"] or ()) for entry in measured)
        against = comparison_columns(result)
        columns = against or throughput_columns(has_p99)
        if has_unit:
            columns = [*columns, UNIT_COLUMN]
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


def _device(entry: dict[str, Any]) -> str:
    """A target's backend, device and threads; an emulated device's name has the backend's in it."""
    threads = count(entry["processes"][0]["environment"]["threads"]["intra_op"], "thread")
    name = entry["device"]["name"]
    return f"{name} ({threads})" if entry["emulated"] else f"{entry['backend']} ({name}, {threads})"


def title(result: dict[str, Any]) -> list[str]:
    """What was measured, on what: backend, device, dtype policy, model, data."""
    # The first target's device stands for all; a baseline's own dtype stands in its note.
    measured = [entry for entry in measured_entries(result["targets"]) if not entry["baseline"]]
    config = result["config"]
    if not measured:
        return [f"isotrain bench: {config['model']}, {config['dtype']}"]
    devices = dict.fromkeys(f"{_device(entry)}, {entry['policy']['label']}" for entry in measured)
    data = measured[0]["data"]
    kernels = dict.fromkeys(
        f"{entry['kernel']} is {entry['kernel_used']['name']} {entry['kernel_used']['version']}"
        for entry in measured
        if entry["kernel"] != entry["kernel_used"]["name"]
    )
    return [
        f"isotrain bench: {'; '.join(devices)}",
        f"model {measured[0]['model']['label']}; data {data['name']}, lengths mean {data['mean_length']:.1f}, "
        f"padded to {config['max_length']}" + "".join(f"; kernel {kernel}" for kernel in kernels),
    ]


def banners(result: dict[str, Any]) -> list[str]:
    """What a reader must see before any figure."""
    lines = []
    if result["status"] == "partial":
        lines.append("PARTIAL: the run was interrupted; these targets are what was complete")
    if result["status"] == "failed":
        lines.append("FAILED: a process did not end well; its target has no figures or fewer")
    if not result["valid"] and any(not entry["valid"] for entry in measured_entries(result["targets"])):
        lines.append("INVALID: figures marked so must not be used; the reasons are below")
    measured = measured_entries(result["targets"])
    emulated = dict.fromkeys(device_label(entry["backend"], True) for entry in measured if entry["emulated"])
    if emulated:
        lines.append(
            f"EMULATED: {', '.join(emulated)} is arithmetic on this host; its times are the host's and say nothing "
            "about a card's speed"
        )
    contended = [_name(entry, result) for entry in measured if is_contended(entry)]
    if contended:
        lines.append(
            f"BUSY MACHINE: other work used the CPUs while {len(contended)} of {len(measured)} targets were measured; "
            f"their figures are too slow and too scattered: {', '.join(contended)}"
        )
    if result["method"]["quick"]:
        lines.append(f"quick: {_thoroughness(result)} a target; {_reach(result)}")
    return lines


def _thoroughness(result: dict[str, Any]) -> str:
    method = result["method"]
    return f"{count(method['processes'], 'process')} of {count(method['blocks'], 'block')} at most"


def _reach(result: dict[str, Any]) -> str:
    if result["method"]["processes"] == 1:
        return "intervals are within one process; another process may lie outside"
    return "intervals are over processes"


def _has_baselines(result: dict[str, Any]) -> bool:
    return any(entry["baseline"] for entry in result["targets"])


def comparison_columns(result: dict[str, Any]) -> list[Column]:
    """A column for each of this project's kernels: how many times as fast as the row it is; none without baselines."""
    if not _has_baselines(result):
        return []
    owns = [entry for entry in measured_entries(result["targets"]) if not entry["baseline"]]

    def ratio(own: dict[str, Any]) -> Callable[[dict[str, Any]], str]:
        found = {one["baseline"]: one for one in result["comparisons"] if one["own"] == own["label"]}

        def cell(entry: dict[str, Any]) -> str:
            one = found.get(entry["label"])
            if one is None:
                return "1" if entry is own else ""
            text = "{median:.2f}x\n({low:.2f} to {high:.2f})".format(**one["ratio"])
            return text if one["valid"] else f"invalid\n{text}"

        return cell

    return [
        Column("samples/s", rate("samples_per_second"), narrow=True),
        Column("95 % interval", interval_cell, narrow=True),
        Column("real\ntokens/s", rate("real_tokens_per_second")),
        *(Column(f"{own['kernel']} is\nfaster by", ratio(own), narrow=True) for own in owns),
        Column("model\nTFLOP/s", rate("model_tflops")),
        Column("of\npeak", share("model")),
        Column("padding", lambda entry: f"{1 - entry['work']['real_tokens'] / entry['work']['padded_tokens']:.0%}"),
        Column("computes\nin", lambda entry: entry["policy"]["compute"]),
    ]


def best_baselines(result: dict[str, Any]) -> list[str]:
    """For each of this project's kernels, its ratio to the fastest baseline that is valid."""
    lines = []
    labels = {entry["label"]: entry for entry in result["targets"]}
    for own in dict.fromkeys(one["own"] for one in result["comparisons"]):
        valid = [one for one in result["comparisons"] if one["own"] == own and one["valid"]]
        if valid:
            best = min(valid, key=lambda one: one["ratio"]["median"])
            ratio = "{median:.2f} times ({low:.2f} to {high:.2f})".format(**best["ratio"])
            baseline = labels[best["baseline"]]
            lines.append(
                f"{labels[own]['kernel']} has {ratio} the speed of the best baseline, {_name(baseline, result)}"
            )
    return lines


def _table(name: str, result: dict[str, Any], columns: Sequence[Column], width: int) -> Table:
    random = any(entry.get("model", {}).get("random_weights") for entry in result["targets"])
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
    best = fastest(result["targets"])
    for entry in result["targets"]:
        name = _name(entry, result)
        if "figures" not in entry:
            table.add_row(name, Text(_lack(entry).upper(), style="red"))
        elif entry["valid"]:
            style = "green" if entry["label"] in best else ""
            table.add_row(name, *(column.cell(entry) for column in shown), style=style)
        else:
            table.add_row(f"INVALID {name}", *(column.cell(entry) for column in shown), style="red")
    return table


def fastest(targets: Sequence[dict[str, Any]]) -> set[str]:
    """The labels of the valid targets with the most samples/s of their workload, where it has others."""
    found = set()
    for workload in {entry["workload"] for entry in targets}:
        valid = [
            one
            for one in targets
            if one["workload"] == workload and one["valid"] and "figures" in one and not one["emulated"]
        ]
        if len(valid) > 1:
            found.add(max(valid, key=lambda one: one["figures"]["samples_per_second"]["median"])["label"])
    return found


def _lack(entry: dict[str, Any]) -> str:
    """What is wrong with a target that has reasons, in a word or two."""
    return entry["status"] if entry["status"] in ("failed", "not run", "unavailable") else "invalid"


def _name(entry: dict[str, Any], result: dict[str, Any]) -> str:
    """The target's label, without what is the same for all of them and stands in the title."""
    if _has_baselines(result):
        return f"{entry['kernel']} {entry['layout']} x{entry['batch_size']}"
    backends = {one["backend"] for one in result["targets"]}
    keep = entry["emulated"] or len(backends) > 1
    return entry["label"] if keep else entry["label"].removeprefix(f"{entry['backend']} ")


def _peaks(result: dict[str, Any]) -> list[str]:
    lines = {}
    for entry in measured_entries(result["targets"]):
        peaks = entry["peaks"]
        lines[entry["backend"], peaks["dtype"]] = peak_line(entry["backend"], peaks, emulated=entry["emulated"])
    return list(lines.values())


def peak_line(backend: str, peaks: dict[str, Any], *, emulated: bool) -> str:
    """A device's limits as they were measured, and as its vendor states them."""
    vendor = [
        "n/a" if value is None else f"{figure(value)} {unit}"
        for value, unit in ((peaks["vendor_tflops"], "TFLOP/s"), (peaks["vendor_gbps"], "GB/s"))
    ]
    unit = peaks.get("unit")
    alone = (
        ""
        if unit is None
        else (
            f"; its {unit['unit']} unit fed from {unit['fed_from']} with {count(unit['threads'], 'thread')}: "
            f"{figure(unit['tflops'])} TFLOP/s"
        )
    )
    whose = f"{device_label(backend, True)}: this host's" if emulated else backend
    contended = "; other work contended that, the true peak is higher" if peaks["contended"] else ""
    return (
        f"{whose} peak in {peaks['dtype']}, measured in this run: {figure(peaks['matmul_tflops'])} TFLOP/s, copy "
        f"{figure(peaks['copy_gbps'])} GB/s; the vendor's figures: {vendor[0]}, {vendor[1]}{alone}{contended}"
    )


def _energy_sources(result: dict[str, Any]) -> list[str]:
    """Where joules come from, or why there are none, by backend."""
    sources = dict.fromkeys(
        (device_label(entry["backend"], entry["emulated"]), entry["energy"]["source"])
        for entry in measured_entries(result["targets"])
    )
    return [f"energy of {backend}: {source}" for backend, source in sources]


def shapes_tried(entry: dict[str, Any]) -> list[Text]:
    """What the sweep of a target's shapes found, and how a baseline was set up."""
    notes = "; ".join(entry.get("kernel_used", {}).get("notes", ()))
    lines = [Text(f"{entry['kernel']}: {notes}")] if notes else []
    if entry["sweep"]:
        tried = ", ".join(
            f"{one['layout']} x{one['batch_size']} "
            + (f"{figure(one['samples_per_second'])}/s" if "samples_per_second" in one else f"({one['error']})")
            for one in entry["sweep"]
        )
        lines.append(
            Text(f"{entry['kernel']}: best of its shapes is {entry['layout']} x{entry['batch_size']}: {tried}")
        )
    return lines


def _remarks(result: dict[str, Any]) -> list[Text]:
    """Reasons by target, warnings of one kind together, then the run's notes."""
    lines = []
    for entry in result["targets"]:
        style = "yellow" if entry["status"] == "unavailable" else "red"
        lines += [Text(f"{_lack(entry)}: {entry['label']}: {reason}", style=style) for reason in entry["reasons"]]
    for entry in result["targets"]:
        lines += shapes_tried(entry)
    kinds: dict[str, list[str]] = {}
    for entry in result["targets"]:
        for warning in entry["warnings"]:
            # Warnings of one kind differ in their numbers alone.
            kinds.setdefault(re.sub(r"[\d.]+", "", warning), []).append(f"{_name(entry, result)}: {warning}")
    for first, *others in kinds.values():
        likewise = f"; {len(others)} other target{'s' * (len(others) > 1)} likewise" if others else ""
        lines.append(Text(f"note: {first}{likewise}"))
    return lines + [Text(f"note: {note}") for note in result["notes"]]
