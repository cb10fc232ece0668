"""The throughput of a bench result's targets, with their intervals. Rules 7 and 10.

An emulated target has no throughput, since its times are this host's. An invalid target has a hatched bar, and a target
without figures only its name.
"""

from __future__ import annotations

from ....albert_core.output.charts import Bar, BarChart
from ...outcome.model import Bench, MeasuredTarget, Target
from ..blocks import Block, Column, Heading, Table, Words
from ..views.bench import banners, comparisons, energy_sources, profiles, target_style, thoroughness
from ..views.columns import (
    INTERVAL,
    JOULES,
    MODEL_SHARE,
    MODEL_TFLOPS,
    P50,
    P90,
    PEAK,
    SAMPLES,
    STEADY,
    TARGET_TOKENS,
    of_targets,
)
from ..views.labels import bench_tags, joined, reasons, titled, verdict
from .loading import Found


def heading(found: Found[Bench]) -> Heading:
    devices = dict.fromkeys(target.device.name for target in found.document.measured)
    return Heading(", ".join(devices) or found.document.config.model, found.path)


def throughput(found: Found[Bench], key: str) -> list[Block]:
    """Samples per second of every target: bars, a table of all figures, and the reasons of invalid targets."""
    bench = found.document
    blocks: list[Block] = [heading(found), Words(_method(bench)), *banners(bench)]
    real = [target for target in bench.measured if target.real]
    workloads = list(dict.fromkeys(target.workload for target in real))
    bars = tuple(
        _bar(target, workloads.index(target.workload))
        if isinstance(target, MeasuredTarget)
        else Bar(target.name, words=verdict(target), empty=True)
        for target in bench.targets
        if target.real
    )
    if real:
        words = "Median of all blocks; whiskers: its 95 % interval."
        titles = titled("Throughput", bench_tags(bench))
        blocks.append(BarChart(key, titles, words, "samples/s", bars, tuple(workloads)))
    why = reasons((target.name, verdict(target), target.reasons) for target in bench.targets)
    return [*blocks, _table(bench), *energy_sources(bench), *why, *comparisons(bench), *profiles(bench)]


def _method(bench: Bench) -> str:
    known = bench.measured
    models = dict.fromkeys(target.model.label for target in known)
    policies = dict.fromkeys(target.policy.label for target in known)
    return joined(
        [
            "model " + ", ".join(models) if models else None,
            "computed as " + ", ".join(policies) if policies else None,
            thoroughness(bench),
        ],
        "; ",
    )


def _bar(target: MeasuredTarget, style: int) -> Bar:
    rate = target.figures.samples_per_second
    words = joined(["" if target.valid else "invalid", "contended" if target.contended else ""], ", ")
    return Bar(target.name, rate.median, rate.low, rate.high, style, words, hatched=not target.valid)


def _table(bench: Bench) -> Table[Target]:
    columns: tuple[Column[Target], ...] = (
        Column("target", lambda target: target.name, numeric=False),
        Column("valid", _usable, numeric=False),
        *of_targets([SAMPLES], of_host="none"),
        *of_targets([INTERVAL, TARGET_TOKENS, P50, P90, MODEL_TFLOPS, MODEL_SHARE, JOULES], of_host=""),
        *of_targets([PEAK]),
        *of_targets([STEADY], of_host=""),
    )
    return Table(titled("All targets", bench_tags(bench)), columns, bench.targets, target_style).without_empty_columns()


def _usable(target: Target) -> str:
    return joined([verdict(target), "contended" if target.contended else ""], ", ")
