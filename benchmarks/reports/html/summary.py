"""The answers: what is fastest and by how much, whether the losses agree, and what was not judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....albert_core.output.charts import Bar, BarChart
from ....albert_core.terminal.text import figure
from ....kernels.words import count
from ...harness.document import Interval
from ...outcome.model import Share
from ..blocks import Section, Words
from ..views.end_to_end import side_words
from ..views.labels import HOSTED, bench_tags, joined, titled, whole_tags
from .loading import Results
from .of_parity import verdicts
from .of_runs import outcome, run_name

WHOLE = "end-to-end runs"
# The most sentences about speed. The chart has all workloads.
MOST_FASTEST = 2
# The most sentences about training runs. Their section has all.
MOST_RUNS = 2


@dataclass(frozen=True)
class Rate:
    """A valid throughput. kernel: the one that ran, or "" for a whole run; tags: what qualifies its whole result."""

    name: str
    path: str
    group: str
    device: str
    kernel: str
    speed: Interval
    share: Share | None
    words: str
    tags: tuple[str, ...]

    @property
    def who(self) -> tuple[str, str]:
        """Device and kernel. A rate is only compared with another one that differs in them."""
        return self.device, self.kernel or self.name


def summary(results: Results) -> Section:
    """The answers in sentences, all valid throughputs in a chart, and the verdicts of parity in a table."""
    section = Section("summary", "Summary")
    rates = valid_rates(results)
    sentences = [*_fastest(rates), *_agreement(results)] or _runs(results)
    section.blocks.extend(map(Words, sentences))
    if rates:
        section.blocks.append(_chart(results, rates))
    table = verdicts(results.parity)
    section.blocks.extend([table] if table is not None else [])
    if results.skipped:
        skipped = count(len(results.skipped), "file")
        section.blocks.append(Words(f"{skipped} could not be used and stand with reasons in the notes", "bold"))
    return section


def valid_rates(results: Results) -> list[Rate]:
    """All valid throughputs by workload, the fastest first."""
    rates = [
        Rate(
            target.name,
            one.path,
            f"{target.workload} of {target.module}" if target.module else target.workload,
            target.device.name,
            target.kernel_used.name,
            target.figures.samples_per_second,
            target.share_of_peak,
            "contended" if target.contended else "",
            tuple(bench_tags(one.document)),
        )
        for one in results.bench
        for target in one.document.measured
        if target.valid and target.real
    ]
    rates += [
        Rate(
            side.name,
            one.path,
            WHOLE,
            side.processes[0].device,
            "",
            side.figures.samples_per_second,
            side.share_of_peak,
            side_words(side),
            tuple(whole_tags(one.document)),
        )
        for one in results.end_to_end_runs
        for side in one.document.sides
        if side.valid and side.figures is not None
        if not any(HOSTED in process.device for process in side.processes)
    ]
    groups = list(dict.fromkeys(rate.group for rate in rates))
    return sorted(rates, key=lambda rate: (groups.index(rate.group), -rate.speed.median))


def _fastest(rates: Sequence[Rate]) -> list[str]:
    """A sentence for each of the first workloads: what is fastest, by how much, and at which share of its peak."""
    groups = list(dict.fromkeys(rate.group for rate in rates))
    sentences = []
    for group in groups[:MOST_FASTEST]:
        members = [rate for rate in rates if rate.group == group]
        first = members[0]
        by = f" by {first.kernel}" if first.kernel else ""
        text = f"Fastest in {group}: {_full(first)}{by} on {first.device}, {figure(first.speed.median)} samples/s"
        if first.share is not None:
            text += f", {first.share.model:.1%} of the measured peak"
        next_one = next((rate for rate in members if rate.who != first.who), None)
        if next_one is not None:
            text += f"; {first.speed.median / next_one.speed.median:.2f} times {_full(next_one)}"
            text += ", measured in another run" if next_one.path != first.path else ""
            text += ", with intervals that overlap" if next_one.speed.high >= first.speed.low else ""
        sentences.append(f"{text}.")
    if len(groups) > MOST_FASTEST:
        sentences[-1] += f" {count(len(groups) - MOST_FASTEST, 'more workload')} in the chart."
    return sentences


def _full(rate: Rate) -> str:
    """A rate's name with everything that qualifies its figure."""
    return f"{rate.name} ({joined([rate.words, *rate.tags], ', ')})" if rate.words or rate.tags else rate.name


def _agreement(results: Results) -> list[str]:
    """Which losses agree, which don't, and which were not judged."""
    judged = [candidate for one in results.parity for candidate in one.document.candidates]
    agreeing = [candidate.name for candidate in judged if candidate.verdict == "pass"]
    apart = [
        f"{candidate.name} ({candidate.verdict}{'' if first is None else f' from step {first:,}'})"
        for candidate in judged
        if candidate.verdict in ("drift", "diverged")
        for first in [candidate.first_step]
    ]
    unjudged = [f"{one.name} ({one.verdict})" for one in judged if one.verdict in ("refused", "failed")]
    known = {candidate.backend for candidate in judged}
    benched = dict.fromkeys(target.backend for one in results.bench for target in one.document.measured)
    agreeing, apart, unjudged = (list(dict.fromkeys(names)) for names in (agreeing, apart, unjudged))
    unjudged += [f"{backend} (no parity result)" for backend in benched if backend not in known]
    against = ", ".join(dict.fromkeys(one.document.reference.name for one in results.parity))
    parts = [
        f"Losses agree with {against}: {', '.join(agreeing)}." if agreeing else None,
        f"Losses do not agree: {', '.join(apart)}." if apart else None,
        f"Not judged: {', '.join(unjudged)}." if unjudged else None,
    ]
    text = joined(parts, " ")
    return [text] if text else []


def _runs(results: Results) -> list[str]:
    """How the first training runs ended."""
    runs = results.runs[:MOST_RUNS]
    return [f"{run_name(run)}: {outcome(run)}." for run in runs]


def _chart(results: Results, rates: Sequence[Rate]) -> BarChart:
    """A chart of all valid throughputs. Common tags are in the title, the others beside the bars."""
    shared = [tag for tag in rates[0].tags if all(tag in rate.tags for rate in rates)]
    several = len({rate.path for rate in rates}) > 1
    groups = tuple(dict.fromkeys(rate.group for rate in rates))
    bars = tuple(
        Bar(
            rate.name,
            rate.speed.median,
            rate.speed.low,
            rate.speed.high,
            groups.index(rate.group),
            joined([rate.words, *(tag for tag in rate.tags if tag not in shared), rate.path if several else ""], ", "),
        )
        for rate in rates
    )
    left_out = sum(not (target.valid and target.real) for one in results.bench for target in one.document.targets)
    words = "Fastest first in each workload. Whiskers: 95 % intervals."
    words += f" {count(left_out, 'target')} without a valid throughput: see Throughput." if left_out else ""
    return BarChart("answer", titled("All valid results", shared), words, "samples/s", bars, groups)
