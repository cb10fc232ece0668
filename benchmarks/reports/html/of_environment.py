"""Where each result comes from (rule 9: machine, versions, git state, command), and its notes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...outcome.model import Measurement
from ..blocks import Section, Table, word_columns
from .loading import Results
from .text import clean

# A longer list of numbers, such as one per core, is shown as its range.
MOST_LISTED = 8
# Keys that describe the moment and not the machine.
OF_THE_MOMENT = ("command", "git", "load")

Facts = dict[str, Any]


def environment(results: Results) -> Section:
    """Command and git state of each result, then each machine with its versions once."""
    section = Section("environment", "Environment", folded=True)
    machines: dict[tuple[tuple[str, str], ...], list[str]] = {}
    origins = []
    for source, own, found in _sources(results):
        own |= {key: found[key] for key in OF_THE_MOMENT if key in found}
        created, command = _said(own.pop("created", "")), _said(own.pop("command", ""))
        origins.append((source, created, command, _said(own) if own else ""))
        lasting = {key: value for key, value in found.items() if key not in OF_THE_MOMENT}
        rows = tuple((clean(key), _said(value)) for key, value in lasting.items() if value not in (None, "", [], {}))
        if rows:
            machines.setdefault(rows, []).append(source)
    if origins:
        columns = word_columns("result", "created", "command", "git, load, hashes, device")
        section.blocks.append(Table("Where each result comes from", columns, tuple(origins)).without_empty_columns())
    columns = word_columns("what", "value")
    section.blocks.extend(Table(f"Environment of {', '.join(of)}", columns, rows) for rows, of in machines.items())
    return section


def _sources(results: Results) -> Iterator[tuple[str, Facts, Facts]]:
    """Everything that ran: its name, its own facts, and its environment."""
    for path, document in _measurements(results):
        own = {"created": document.created, "command": " ".join(document.command)}
        yield path, own, document.environment.document()
    for one in results.parity:
        parity = one.document
        hashes = {
            f"{what} SHA-256": value
            for what, value in (
                ("batches", parity.batches_sha256),
                ("configuration", parity.config_sha256),
                ("initial weights", parity.weights_sha256),
            )
            if value
        }
        yield one.path, {"created": parity.created, "command": parity.command, **hashes}, {}
        for side in (parity.reference, *parity.candidates):
            ran = (("device", side.device), ("policy", side.policy), ("kernel", side.kernel), ("model", side.model))
            found = side.environment.document() if side.environment else {}
            yield f"{one.path}: {side.name}", {key: value for key, value in ran if value}, found
    for run in results.runs:
        record = run.document.record
        own = {"device": record.device.name, "model": record.model, "data": record.dataset}
        yield run.path, own, record.environment


def _said(value: Any) -> str:
    """A value as a text, with names before nested values."""
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
    """Each note on the figures once, and the files that could not be used."""
    section = Section("notes", "Notes", folded=True)
    found = [(one.path, note) for one in results.parity for note in one.document.notes]
    found += [(path, note) for path, document in _measurements(results) for note in document.notes]
    found += [
        (one.path, f"{target.name}: {warning}")
        for one in results.bench
        for target in one.document.targets
        for warning in target.warnings
    ]
    sources: dict[str, list[str]] = {}
    for path, note in found:
        sources.setdefault(note, []).append(path)
    columns = word_columns("file", "note")
    if sources:
        rows = tuple((", ".join(dict.fromkeys(paths)), note) for note, paths in sources.items())
        section.blocks.append(Table("Notes of the results", columns, rows))
    if results.skipped:
        skipped = tuple((one.path, one.reason) for one in results.skipped)
        section.blocks.append(Table("Files that could not be used", columns, skipped))
    return section


def _measurements(results: Results) -> Iterator[tuple[str, Measurement]]:
    yield from ((found.path, found.document) for found in results.bench)
    yield from ((found.path, found.document) for found in results.end_to_end_runs)
