"""From the workers' documents to one result: figures with intervals, gates across targets, a file (rules 6, 7, 9)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from ... import UserError
from ...albert_core.runs.files import make_folders, sweep, write_json
from ...backends import device_label
from ...kernels.words import count
from ..harness import environment
from ..harness.document import Interval
from ..harness.plan import FULL_BLOCKS, FULL_PROCESSES, Options, Plan, hash_of
from ..harness.runner import WorkerRun
from ..harness.statistics import median_interval, outliers, quantile, ratio_interval, two_modes
from .gates import Entry, judge, measured_entries

SCHEMA = "isotrain.bench/2"
UNAVAILABLE = "unavailable"
# p99 of fewer values is the largest of them and says nothing.
LEAST_FOR_P99 = 100
# What a result keeps of each process.
PROCESS_KEYS = (
    "steps_per_block",
    "step_seconds",
    "warm_up",
    "phases",
    "peaks",
    "memory",
    "energy",
    "environment",
)


def build_result(
    plan: Plan,
    runs: Sequence[WorkerRun],
    machine: dict[str, Any],
    interrupted: bool = False,
    sweeps: Mapping[int, list[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """The whole result (schema/bench-2.json) of what has run, every figure judged.

    machine: `environment.describe()` of the moment before the first process. sweeps: by target, the shapes that were
    tried and their speed.
    """
    done: dict[int, list[WorkerRun]] = {index: [] for index in range(len(plan.targets))}
    for run in runs:
        done[run.target].append(run)
    entries = [_entry(plan, index, done[index]) for index in range(len(plan.targets))]
    judge(entries, [_probe(done[index]) for index in range(len(plan.targets))])
    _relate(entries, plan.options)
    for index, entry in enumerate(entries):
        entry["sweep"] = (sweeps or {}).get(index, [])
    failed = any(entry["status"] == "failed" for entry in entries)
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "partial" if interrupted else "failed" if failed else "complete",
        "valid": all(entry["valid"] for entry in entries if entry["status"] != UNAVAILABLE),
        "notes": _notes(plan),
        "command": environment.command_line(),
        "config": plan.options.config(),
        "config_sha256": hash_of(plan.options.config()),
        "method": plan.options.method(),
        "environment": machine,
        "targets": entries,
        "comparisons": compare(entries, plan.options.seed) if plan.options.vs else [],
    }


def write_result(result: dict[str, Any], path: Path) -> None:
    """The result as JSON at `path`, whole or not at all. Raises as `written`."""
    make_folders(path.parent, "--out")
    sweep(path.parent)
    write_json(path, result)


def result_path(out: Path | None, now: datetime) -> Path:
    """Where a result goes: `out` when it names a .json file, else a stamped file in that folder (default results/).

    Raises UserError, before anything is measured, for a place that can't be written to.
    """
    stamped = f"bench-{now.strftime('%Y%m%dT%H%M%SZ')}.json"
    folder = Path("results") if out is None else out
    path = folder if folder.suffix == ".json" else folder / stamped
    if path.is_dir():
        raise UserError(f"--out {str(out)!r} is a folder that ends in .json; give a file, or a folder of another name")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise UserError(f"--out {str(out)!r}: {existing} is a file, not a folder; choose another place")
    return path


def _entry(plan: Plan, index: int, runs: Sequence[WorkerRun]) -> Entry:
    spec = plan.targets[index]
    documents = [run.document for run in runs if run.document is not None]
    refused = plan.unavailable.get(index) or next((run.error for run in runs if run.user_error and spec.baseline), "")
    errors = [run.error for run in runs if run.document is None]
    options = plan.options
    entry: Entry = {
        "label": spec.label,
        **spec.as_dict(),
        "config_sha256": hash_of({**options.config(), **spec.as_dict()}),
        "status": _status(len(documents), bool(errors), options.processes),
        "reasons": [f"a process {error}" for error in errors],
        "warnings": [],
    }
    if refused:
        # Somebody else's program that isn't here is no fault of the measurement.
        return entry | {"status": UNAVAILABLE, "reasons": [refused]}
    if not documents:
        entry["reasons"] = entry["reasons"] or ["no process of it was started"]
        return entry
    if len(documents) < options.processes:
        entry["warnings"].append(f"{len(documents)} of {options.processes} processes ran")
    first = documents[0]
    samples = [document["step_seconds"] for document in documents]
    flat = [value for process in samples for value in process]
    entry |= {key: first[key] for key in ("kernel", "device", "policy", "model", "data", "work")}
    entry["kernel_used"] = entry.pop("kernel")
    entry["kernel"] = spec.kernel
    entry["n"] = len(flat)
    entry["reasons"] += _collected(documents, "reasons")
    entry["warnings"] += _collected(documents, "warnings")
    entry["phases"] = {name: _spread([document["phases"][name] for document in documents]) for name in first["phases"]}
    entry["memory"] = {
        "peak_bytes": max(document["memory"]["peak_bytes"] for document in documents),
        "scope": first["memory"]["scope"],
    }
    entry["peaks"] = max((document["peaks"] for document in documents), key=lambda peaks: peaks["matmul_tflops"])
    entry["processes"] = [
        {
            "process": run.process,
            "wall_seconds": run.seconds,
            **{key: run.document[key] for key in PROCESS_KEYS},
        }
        for run in runs
        if run.document is not None
    ]
    if not all(math.isfinite(value) and value > 0 for value in flat):
        entry["reasons"].append("a block took no time at all")
        return entry
    entry["energy"] = _energy(documents, options.seed)
    entry["outliers"] = [list(place) for place in outliers(samples)]
    groups = two_modes(samples)
    if groups is not None:
        fast, slow, slower = groups
        entry["warnings"].append(
            f"the blocks fall into two groups, {fast * 1e3:.3g} and {slow * 1e3:.3g} ms a step "
            f"({len(flat) - slower} and {slower} of the blocks): the median is that of whichever has more"
        )
    entry["figures"] = _figures(median_interval(samples, options.seed), flat, first["work"])
    return entry


def _status(complete: int, failed: bool, wanted: int) -> str:
    if failed:
        return "failed"
    return "complete" if complete == wanted else "partial" if complete else "not run"


def _figures(step: Interval, flat: Sequence[float], work: dict[str, float]) -> dict[str, Any]:
    """Every figure is work a step over seconds a step, so they all share one interval."""
    return {
        "step_seconds": {
            **step.document(),
            "p50": quantile(flat, 0.5),
            "p90": quantile(flat, 0.9),
            "p99": quantile(flat, 0.99) if len(flat) >= LEAST_FOR_P99 else None,
        },
        "samples_per_second": step.rate(work["samples"]).document(),
        "real_tokens_per_second": step.rate(work["real_tokens"]).document(),
        "padded_tokens_per_second": step.rate(work["padded_tokens"]).document(),
        "model_tflops": step.rate(work["model_flops"] / 1e12).document(),
        "hardware_tflops": step.rate(work["hardware_flops"] / 1e12).document(),
    }


def _energy(documents: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Joules a text with their interval, or why there are none. Whatever else ran on the device is included."""
    for document in documents:
        if not document["energy"]["block_joules"]:
            return {"source": document["energy"]["source"], "joules_per_sample": None, "n": 0}
    samples = [_joules_a_text(document) for document in documents]
    count = sum(len(process) for process in samples)
    if min(map(min, samples)) <= 0.0:
        return {"source": "unavailable: the counter stood still during a block", "joules_per_sample": None, "n": count}
    interval = median_interval(samples, seed)
    return {"source": documents[0]["energy"]["source"], "joules_per_sample": interval.document(), "n": count}


def _joules_a_text(document: dict[str, Any]) -> list[float]:
    texts = document["steps_per_block"] * document["work"]["samples"]
    return [joules / texts for joules in document["energy"]["block_joules"]]


def _collected(documents: Sequence[dict[str, Any]], key: str) -> list[str]:
    """The distinct texts under `key`, in order; those of one process among several say which."""
    texts: dict[str, list[int]] = {}
    for process, document in enumerate(documents):
        for text in document[key]:
            texts.setdefault(text, []).append(process)
    several = len(documents) > 1
    return [
        f"{text} (process {', '.join(str(process + 1) for process in processes)})" if several else text
        for text, processes in texts.items()
    ]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _probe(runs: Sequence[WorkerRun]) -> dict[str, list[float]]:
    return next((run.document["probe"] for run in runs if run.document is not None), {})


def _relate(entries: Sequence[Entry], options: Options) -> None:
    """Speed relative to the first target of the same workload and batch size, as a ratio with its interval.

    Against baselines, each of which has its own batch size, all are relative to the first. Emulated and real devices
    are never held against each other.
    """
    references: dict[tuple[str, int, bool], Entry] = {}
    for entry in measured_entries(entries):
        alike = (entry["workload"], 0 if options.vs else entry["batch_size"], entry["emulated"])
        reference = references.setdefault(alike, entry)
        entry["relative"] = None
        if reference is not entry:
            ratio = ratio_interval(text_seconds(reference), text_seconds(entry), options.seed)
            entry["relative"] = {"to": reference["label"], **ratio.document()}


def text_seconds(entry: Entry) -> list[list[float]]:
    """Seconds a text, one value a block, by process."""
    samples = entry["work"]["samples"]
    return [[seconds / samples for seconds in process["step_seconds"]] for process in entry["processes"]]


def compare(entries: Sequence[Entry], seed: int) -> list[dict[str, Any]]:
    """How many times as fast as each baseline each of this project's kernels is; invalid where either of the two is."""
    measured = measured_entries(entries)
    return [
        {
            "own": own["label"],
            "baseline": baseline["label"],
            "ratio": ratio_interval(text_seconds(baseline), text_seconds(own), seed).document(),
            "valid": own["valid"] and baseline["valid"],
        }
        for own in measured
        if not own["baseline"]
        for baseline in measured
        if baseline["baseline"]
    ]


def emulation_notes(backends: Iterable[str]) -> list[str]:
    """What must be said of every figure of these emulated backends."""
    return [
        f"{device_label(name, True)}: every time and rate is the emulation's on this host, never a card's; there is no "
        "share of a card's peak"
        for name in dict.fromkeys(backends)
    ]


def _notes(plan: Plan) -> list[str]:
    options = plan.options
    notes = [*emulation_notes(spec.backend for spec in plan.targets if spec.emulated), *plan.skipped]
    if options.vs:
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
