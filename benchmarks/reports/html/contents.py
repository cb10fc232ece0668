"""The report's contents, section by section."""

from __future__ import annotations

from collections import Counter

from ....kernels.words import count
from ...outcome.end_to_end import EndToEnd
from ...outcome.model import Bench
from ...outcome.parity import Parity
from ..blocks import Section, Table, word_columns
from ..views.labels import HOSTED, bench_tags, joined, whole_tags
from ..views.parity import parity_tags
from . import of_bench, of_end_to_end, of_environment, of_parity, of_phases, of_roofline, of_runs
from .loading import Results
from .of_runs import outcome, run_name
from .summary import summary


def contents(results: Results) -> list[Section]:
    """The sections that aren't empty: first the answers, then the details, which are folded."""
    throughput = Section("throughput", "Throughput", folded=True)
    roofline = Section("roofline", "Roofline", folded=True)
    for index, bench in enumerate(results.bench):
        throughput.blocks.extend(of_bench.throughput(bench, f"throughput-{index}"))
        roofline.blocks.extend(of_roofline.roofline(bench, f"roofline-{index}"))
    for index, whole in enumerate(results.end_to_end_runs):
        throughput.blocks.extend(of_end_to_end.end_to_end_runs(whole, f"whole-runs-{index}"))
    # If there are only training runs, the report shows their curves first.
    answered = bool(results.bench or results.end_to_end_runs or results.parity)
    sections = [
        summary(results),
        of_parity.agreement(results),
        of_parity.growth(results),
        throughput,
        roofline,
        of_runs.training(results, folded=answered),
        of_phases.phases(results),
        _outcomes(results),
        of_environment.environment(results),
        of_environment.notes(results),
    ]
    return [section for section in sections if section.blocks]


def lead(results: Results) -> str:
    """What the report was made from, in one line."""
    counts = (
        (results.parity, "parity result"),
        (results.bench, "bench result"),
        (results.end_to_end_runs, "whole-run result"),
        (results.runs, "training run"),
        (results.skipped, "skipped file"),
    )
    return joined([count(len(found), noun) for found, noun in counts if found])


def _outcomes(results: Results) -> Section:
    rows = [
        *((one.path, "parity", *_of_parity(one.document)) for one in results.parity),
        *((one.path, "bench", *_of_bench(one.document)) for one in results.bench),
        *((one.path, "end-to-end runs", *_of_end_to_end(one.document)) for one in results.end_to_end_runs),
        *((one.path, "training", run_name(one).rpartition(", ")[2], outcome(one)) for one in results.runs),
    ]
    columns = word_columns("file or folder", "kind", "on", "outcome")
    table = Table("What was found, and how it came out", columns, tuple(rows))
    return Section("results", "Results", [table], folded=True)


def _of_parity(parity: Parity) -> tuple[str, str]:
    verdicts = Counter[str](one.verdict for one in parity.candidates)
    counted = [f"{verdicts[word]} {sign}" for word, sign in of_parity.SIGNS.items() if verdicts[word]]
    names = ", ".join(one.name for one in parity.candidates)
    return f"{names} against {parity.reference.name}", joined([*counted, *parity_tags(parity)])


def _of_bench(bench: Bench) -> tuple[str, str]:
    known = bench.measured
    devices = dict.fromkeys(target.device.name for target in known)
    counts = (
        ("valid", [target for target in bench.targets if target.valid and target.real]),
        (HOSTED, [target for target in known if not target.real]),
        ("unavailable", [target for target in bench.targets if target.status == "unavailable"]),
        ("invalid", [target for target in bench.targets if not target.valid and target.status != "unavailable"]),
    )
    counted = [f"{len(targets)} {word}" for word, targets in counts if targets]
    return ", ".join(devices), joined([*counted, *bench_tags(bench)])


def _of_end_to_end(result: EndToEnd) -> tuple[str, str]:
    valid = sum(side.valid for side in result.sides)
    devices = dict.fromkeys(process.device for process in result.processes)
    invalid = f"{len(result.sides) - valid} invalid" if valid < len(result.sides) else None
    return ", ".join(devices), joined([f"{valid} valid", invalid, *whole_tags(result)])
