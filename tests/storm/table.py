"""The storm's table: how many tries of each kind and variant ended in which way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .judge import Verdict

Row = tuple[str, str, Verdict]


def cells(rows: Iterable[Row]) -> list[list[str]]:
    """The header, a line for each kind and variant, and the sum of each kind. Columns without a bad end are kept."""
    counts: Counter[Row] = Counter(rows)
    groups = list(dict.fromkeys((kind, variant) for kind, variant, _ in counts))
    order = {kind: position for position, kind in enumerate(dict.fromkeys(kind for kind, _ in groups))}
    groups.sort(key=lambda group: order[group[0]])
    lines = [["kind", "variant", "tried", *Verdict]]
    for kind, variant in groups:
        found = [counts[kind, variant, verdict] for verdict in Verdict]
        lines.append([kind, variant, *_counted(found)])
    for kind in order:
        found = [sum(counts[kind, variant, verdict] for of, variant in groups if of == kind) for verdict in Verdict]
        lines.append([kind, "all", *_counted(found)])
    return lines


def _counted(found: list[int]) -> list[str]:
    """How many were tried, what was skipped left out, and how many ended in each way."""
    skipped = found[list(Verdict).index(Verdict.SKIPPED)]
    return [f"{count:,}" for count in (sum(found) - skipped, *found)]


def as_text(rows: Iterable[Row]) -> str:
    """For a terminal."""
    lines = cells(rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def as_markdown(rows: Iterable[Row]) -> str:
    """For a document."""
    header, *lines = cells(rows)
    rule = ["---", "---", *("---:" for _ in header[2:])]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *lines))
