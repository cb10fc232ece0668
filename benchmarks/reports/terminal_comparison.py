"""Two results held against each other: on a terminal, as CSV and Markdown, and as what a CI service shows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich.console import Console

from ...albert_core.terminal.text import clean
from ..harness.document import Interval
from ..regression.compare import Compared, Comparison
from ..regression.metrics import SPEED
from ..regression.verdict import BAD, FAIL, INCONCLUSIVE, MISSING, WARN
from .blocks import Block, Column, Heading, Table, Words
from .csv_markdown import to_csv, to_markdown
from .terminal import print_blocks

# Where GitHub Actions takes the page of a job.
SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The comparison as a table, then what differs beside it."""
    blocks: list[Block] = [Heading(_title(comparison)), Words(f"of {comparison.subject}")]
    blocks.append(Table("", COLUMNS, comparison.targets, _style))
    print_blocks([*blocks, *map(Words, _notes(comparison))], console)


def as_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row a target and metric; a figure that isn't there is an empty cell."""
    rows = []
    for one in comparison.targets:
        ratio = _shown(one)
        parts = {f"ratio_{part}": "" if ratio is None else getattr(ratio, part) for part in ("median", "low", "high")}
        rows.append(
            {
                "target": one.label,
                "what": one.what,
                "verdict": one.verdict.outcome,
                **parts,
                "gate": "" if ratio is None else one.threshold,
                "detectable": "" if one.verdict.detectable is None else one.verdict.detectable,
                "reason": one.verdict.reason,
                "contended": one.contended,
                "warnings": "; ".join(one.warnings),
                "differs": "; ".join(told.words() for told in comparison.differences if told.of in ("", one.label)),
            }
        )
    return rows


def as_csv(comparison: Comparison) -> str:
    return to_csv(as_rows(comparison))


def as_markdown(comparison: Comparison) -> str:
    """A heading, a table and what differs."""
    table = to_markdown(Table("", COLUMNS, comparison.targets))
    notes = "".join(f"* {clean(line)}\n" for line in _notes(comparison))
    return f"### {clean(_title(comparison))}\n\nOf {clean(comparison.subject)}\n\n{table}\n{notes}"


def as_github(comparison: Comparison) -> str:
    """Annotations of GitHub Actions (workflow commands), one a target, and one of what differs.

    The Markdown is appended to the job's summary where the service gives a file for it.
    """
    summary = os.environ.get(SUMMARY_VARIABLE)
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(as_markdown(comparison) + "\n")
    lines = []
    for one in comparison.targets:
        level = _level(comparison, one) or "notice"
        title = _escaped(f"{one.verdict.outcome}: {one.label}", {":": "%3A", ",": "%2C"})
        lines.append(f"::{level} title={title}::{_escaped(_sentence(one), {})}\n")
    notes = "\n".join([_title(comparison), *_notes(comparison)])
    return "".join(lines) + f"::notice::{_escaped(notes, {})}\n"


def as_junit(comparison: Comparison) -> str:
    """JUnit's XML, as CI services read it: a case a target and metric, each with its reason.

    What differs and the warnings are the suite's properties.
    """
    levels = [_level(comparison, one) for one in comparison.targets]
    counts = {"tests": len(levels), "failures": levels.count("error"), "skipped": levels.count("warning")}
    given = {"name": "isotrain compare", **{key: str(number) for key, number in counts.items()}}
    suite = ElementTree.Element("testsuite", given)
    properties = ElementTree.SubElement(suite, "properties")
    for kind, _, told in (note.partition(": ") for note in _notes(comparison)):
        ElementTree.SubElement(properties, "property", name=kind, value=clean(told))
    for one, level in zip(comparison.targets, levels, strict=True):
        case = ElementTree.SubElement(suite, "testcase", classname=f"isotrain.{one.what}", name=clean(one.label))
        if level in ("error", "warning"):
            kind = "failure" if level == "error" else "skipped"
            ElementTree.SubElement(case, kind, message=f"{one.verdict.outcome}: {clean(_sentence(one))}")
        else:
            ElementTree.SubElement(case, "system-out").text = clean(_sentence(one))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "csv": as_csv,
    "markdown": as_markdown,
    "github": as_github,
    "junit": as_junit,
}


def _title(comparison: Comparison) -> str:
    return f"isotrain compare: {comparison.after} over {comparison.before}"


def _shown(one: Compared) -> Interval | None:
    """The ratio where it is worth its digits: of an interval that is too wide, only JSON has them."""
    return None if one.verdict.detectable is None else one.ratio


def _ratio(text: Callable[[Interval, Compared], str]) -> Callable[[Compared], str]:
    def cell(one: Compared) -> str:
        ratio = _shown(one)
        return "" if ratio is None else text(ratio, one)

    return cell


COLUMNS: tuple[Column[Compared], ...] = (
    Column("target", lambda one: one.label if one.what == SPEED else f"{one.label}: {one.what}", numeric=False),
    Column("ratio", _ratio(lambda ratio, _: f"{ratio.median:.3f}x")),
    Column("95 % interval", _ratio(lambda ratio, _: f"{ratio.low:.3f} to {ratio.high:.3f}")),
    Column("gate", _ratio(lambda _, one: f"{one.threshold:.3g}")),
    Column("verdict", lambda one: one.verdict.outcome, numeric=False),
    Column("why", lambda one: one.verdict.reason, numeric=False),
)


def _style(one: Compared) -> str:
    return "red" if one.verdict.outcome in BAD else "yellow" if one.verdict.outcome == INCONCLUSIVE else ""


def _level(comparison: Comparison, one: Compared) -> str:
    """What a CI service makes of a target: an error ends the job."""
    outcome = one.verdict.outcome
    if outcome == INCONCLUSIVE:
        return {FAIL: "error", WARN: "warning"}.get(comparison.on_undecided, "")
    if outcome == MISSING and comparison.allow_missing:
        return "warning"
    return "error" if outcome in BAD else ""


def _sentence(one: Compared) -> str:
    """One target's figures and verdict in a line."""
    figures, ratio = "", _shown(one)
    if ratio is not None:
        figures = f"{one.what} {ratio.median:.3f}x ({ratio.low:.3f} to {ratio.high:.3f}), gate {one.threshold:.3g}"
    return "; ".join(part for part in (figures, one.verdict.reason) if part) or one.verdict.outcome


def _notes(comparison: Comparison) -> Sequence[str]:
    # Every metric of a target has its warnings.
    of_targets = dict.fromkeys(f"{one.label}: {line}" for one in comparison.targets for line in one.warnings)
    notes = [f"warning: {line}" for line in (*comparison.warnings, *of_targets)]
    notes += [f"differs: {one.words()}" for one in comparison.differences]
    if not comparison.confirmed:
        notes.append("note: one pair of runs confirms no change: --again gives a second one")
    if not comparison.paired:
        notes.append(
            "note: runs that are measured one after the other can't tell a drift of the machine from the code; "
            "bench --against can"
        )
    return notes


def _escaped(text: str, more: Mapping[str, str]) -> str:
    """A workflow command's text: percent and line ends are escaped, in properties also colons and commas."""
    for character, code in {"%": "%25", "\r": "%0D", "\n": "%0A", **more}.items():
        text = text.replace(character, code)
    return clean(text)
