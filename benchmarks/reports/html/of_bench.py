"""The throughput of a bench result's targets, with their intervals. Rules 7 and 10.

A target that is not real has no throughput: its times are this host's. One that is invalid keeps its bar, hatched, and
one that has no figures its name.
"""

from __future__ import annotations

from ....albert_core.output.charts import Bar, BarChart
from ....albert_core.terminal.text import number
from ....kernels.words import count
from ...outcome.model import Bench, MeasuredTarget, Target
from ..blocks import Block, Heading, Table, Words, figure_columns, word_columns
from .labels import HOST_TIMES, bench_tags, reasons, titled, verdict
from .loading import Found
from .text import joined


def heading(found: Found[Bench]) -> Heading:
    devices = dict.fromkeys(target.device.name for target in found.document.measured)
    return Heading(", ".join(devices) or found.document.config.model, found.path)


def throughput(found: Found[Bench], key: str) -> list[Block]:
    """Samples a second of every target: bars, the table of all figures, and what is wrong with some of them."""
    bench = found.document
    blocks: list[Block] = [heading(found), Words(_method(bench))]
    blocks += [Words(text, strong=True) for text in _banners(bench)]
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
    blocks.append(_table(bench))
    blocks += [Words(f"Energy {source}") for source in _without_energy(bench)]
    blocks += reasons((target.name, verdict(target), target.reasons) for target in bench.targets)
    return blocks + _comparisons(bench)


def _method(bench: Bench) -> str:
    known = bench.measured
    models = dict.fromkeys(target.model.label for target in known)
    policies = dict.fromkeys(target.policy.label for target in known)
    thoroughness = f"{count(bench.method.processes, 'process')} a target"
    reach = "within one process" if bench.method.processes == 1 else "over processes"
    return joined(
        [
            "model " + ", ".join(models) if models else None,
            "computed as " + ", ".join(policies) if policies else None,
            f"{thoroughness}, at most {count(bench.method.blocks, 'block')} each; intervals are {reach}",
        ],
        "; ",
    )


def _banners(bench: Bench) -> list[str]:
    """What must be read before the figures."""
    known = bench.measured
    invalid = [target.name for target in bench.targets if not target.valid and target.status != "unavailable"]
    of_host = [target.name for target in known if not target.real]
    contended = [target.name for target in known if target.contended]
    return [
        f"{words}: {', '.join(names)}"
        for words, names in (
            ("Invalid, for the reasons below", invalid),
            (HOST_TIMES, of_host),
            ("Measured while other work used the CPUs, so too slow and too scattered", contended),
        )
        if names
    ]


def _bar(target: MeasuredTarget, style: int) -> Bar:
    rate = target.figures.samples_per_second
    words = joined(["" if target.valid else "invalid", "contended" if target.contended else ""], ", ")
    return Bar(target.name, rate.median, rate.low, rate.high, style, words, hatched=not target.valid)


def _table(bench: Bench) -> Table:
    columns = (
        *word_columns("target", "valid"),
        *figure_columns("samples/s", "95 % interval", "tokens/s", "p50 ms", "p90 ms", "model TFLOP/s"),
        *figure_columns("of peak", "J/sample", "peak MiB", "steady s (n)"),
    )
    rows = tuple((target.name, _usable(target), *_cells(target)) for target in bench.targets)
    flagged = frozenset(index for index, target in enumerate(bench.targets) if not target.valid)
    return Table(titled("All targets", bench_tags(bench)), columns, rows, flagged).without_empty_columns()


def _usable(target: Target) -> str:
    return joined([verdict(target), "contended" if target.contended else ""], ", ")


def _comparisons(bench: Bench) -> list[Table]:
    """How many times as fast as each baseline each own kernel is; none without baselines."""
    columns = (
        *word_columns("ours", "baseline"),
        *figure_columns("ours is faster by", "95 % interval"),
        *word_columns("valid"),
    )
    rows = tuple(
        (one.own, one.baseline, f"{one.ratio.median:.2f}x", one.ratio.words(), "valid" if one.valid else "invalid")
        for one in bench.comparisons
    )
    flagged = frozenset(index for index, one in enumerate(bench.comparisons) if not one.valid)
    return [Table(titled("Against baselines", bench_tags(bench)), columns, rows, flagged)] if rows else []


def _without_energy(bench: Bench) -> list[str]:
    """Why there is no figure of energy: what the results say of the missing counter, once each."""
    known = [target.energy for target in bench.measured]
    return list(dict.fromkeys(energy.source for energy in known if energy.joules_per_sample is None))


def _cells(target: Target) -> list[str]:
    if not isinstance(target, MeasuredTarget):
        return [""] * 10
    figures, share, joules = target.figures, target.share_of_peak, target.energy.joules_per_sample
    memory = number(target.memory.peak_bytes / 2**20)
    if share is None:
        return ["none", *[""] * 7, memory, ""]
    steady = target.phases["steady"].median if "steady" in target.phases else None
    return [
        number(figures.samples_per_second.median),
        figures.samples_per_second.words(),
        number(figures.real_tokens_per_second.median),
        number(figures.step_seconds.p50 * 1e3),
        number(figures.step_seconds.p90 * 1e3),
        number(figures.model_tflops.median),
        f"{share.model:.1%}",
        "n/a" if joules is None else number(joules.median),
        memory,
        "" if steady is None else f"{number(steady)} ({target.n})",
    ]
