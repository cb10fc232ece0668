"""Where each result comes from (rule 9: machine, versions, git state, command), and what it says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...outcome.model import Measurement
from ..blocks import Column, Section, Table
from .loading import Results
from .text import clean

# A list of one number per core is given by its range.
MOST_LISTED = 8


def environment(results: Results) -> Section:
    """Machine, versions, git state and command of each document."""
    section = Section("environment", "Environment")
    for path, document in _measurements(results):
        own = {"created": document.created, "command": " ".join(document.command)}
        section.blocks.append(_facts(path, own | document.environment.document()))
    for one in results.parity:
        parity = one.document
        command = parity.command if isinstance(parity.command, str) else " ".join(parity.command)
        hashes = {
            f"{what} SHA-256": value
            for what, value in (
                ("batches", parity.batches_sha256),
                ("configuration", parity.config_sha256),
                ("initial weights", parity.weights_sha256),
            )
        }
        sides = {
            side.name: {"device": side.device, "policy": side.policy, "kernel": side.kernel, "model": side.model}
            | (side.environment.document() if side.environment else {})
            for side in (parity.reference, *parity.candidates)
        }
        facts: dict[str, Any] = {"created": parity.created, "command": command} | hashes | sides
        section.blocks.append(_facts(one.path, facts))
    for run in results.runs:
        record = run.document.record
        own = {"device": record.device.name, "model": record.model, "data": record.dataset}
        section.blocks.append(_facts(run.path, own | record.environment))
    return section


def _facts(source: str, environment: dict[str, Any]) -> Table:
    columns = (Column("what", numeric=False), Column("value", numeric=False))
    rows = tuple((clean(key), _said(value)) for key, value in environment.items() if value not in (None, "", [], {}))
    return Table(f"Environment of {source}", columns, rows)


def _said(value: Any) -> str:
    """A value as a text; of nested ones, each after its name."""
    if isinstance(value, dict):
        named = (f"{clean(str(key)).replace('_', ' ')} {_said(inner)}" for key, inner in value.items())
        return "; ".join(named) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and value > 2**24:
        return f"{value:,}"
    if not isinstance(value, list):
        return clean(str(value))
    numbers = [one for one in value if isinstance(one, int | float)]
    if len(value) > MOST_LISTED and len(numbers) == len(value):
        return f"{min(numbers):g} to {max(numbers):g} ({len(numbers)} values)"
    return ", ".join(clean(str(one)) for one in value)


def notes(results: Results) -> Section:
    """What qualifies the figures, and the files that could not be used."""
    section = Section("notes", "Notes")
    rows = [(found.path, note) for found in results.parity for note in found.document.notes]
    rows += [(path, note) for path, document in _measurements(results) for note in document.notes]
    rows += [
        (found.path, f"{target.name}: {warning}")
        for found in results.bench
        for target in found.document.targets
        for warning in target.warnings
    ]
    columns = (Column("file", numeric=False), Column("note", numeric=False))
    if rows:
        section.blocks.append(Table("Notes of the results", columns, tuple(rows)))
    if results.skipped:
        skipped = tuple((one.path, one.reason) for one in results.skipped)
        section.blocks.append(Table("Files that could not be used", columns, skipped))
    return section


def _measurements(results: Results) -> Iterator[tuple[str, Measurement]]:
    yield from ((found.path, found.document) for found in results.bench)
    yield from ((found.path, found.document) for found in results.end_to_end_runs)
