"""Results over git revisions: each target's speed in the order in which it was measured, one line a result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import UserError
from ..harness.statistics import ratio_interval
from .build import text_seconds
from .compare import SEED
from .found import find_results, foreign_line
from .model import load_result, revision, shown_label

Row = dict[str, Any]


@dataclass(frozen=True)
class History:
    """rows: one a result and target, by target, oldest first.

    skipped: results that can't be used, and why. foreign: a line about files that are no results, or empty.
    """

    rows: tuple[Row, ...]
    skipped: tuple[str, ...]
    foreign: str = ""


def load_history(folder: Path) -> History:
    """The history of all results under `folder`. Raises UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is no folder; give the one that holds results of isotrain bench")
    results, skipped = [], []
    found = find_results(folder)
    for path, kind in found.results:
        # End-to-end runs and comparisons of losses have no targets.
        if not "bench".startswith(kind):
            continue
        try:
            result = load_result(path)
        except UserError as error:
            skipped.append(str(error))
        else:
            results.append((path, result))
    if not results:
        raise UserError(f"{str(folder)!r} holds no result of isotrain bench; measure some with --out {folder}")
    series: dict[tuple[str, ...], list[tuple[Path, dict[str, Any], dict[str, Any]]]] = {}
    for path, result in sorted(results, key=lambda found: found[1]["created"]):
        for entry in result["targets"]:
            if "figures" in entry:
                series.setdefault(_identity(entry), []).append((path, result, entry))
    rows = [row for members in series.values() for row in _rows(members)]
    return History(tuple(rows), tuple(skipped), foreign_line(found.foreign, folder))


def _identity(entry: dict[str, Any]) -> tuple[str, ...]:
    """Only results that share all of this are points of one line."""
    return entry["label"], entry["config_sha256"], entry["device"]["name"], entry["policy"]["label"]


def _rows(members: list[tuple[Path, dict[str, Any], dict[str, Any]]]) -> list[Row]:
    rows: list[Row] = []
    before: dict[str, Any] | None = None
    for path, result, entry in members:
        samples = entry["figures"]["samples_per_second"]
        rows.append(
            {
                "target": shown_label(entry),
                "model": entry["model"]["label"],
                "device": entry["device"]["name"],
                "dtype": entry["policy"]["label"],
                "config": entry["config_sha256"][:10],
                "created": result["created"],
                "revision": revision(result),
                "valid": entry["valid"],
                "n": entry["n"],
                **{f"samples_per_second_{part}": samples[part] for part in ("median", "low", "high")},
                **_change(before, entry),
                "file": str(path),
            }
        )
        if entry["valid"]:
            before = entry
    return rows


def _change(before: dict[str, Any] | None, entry: dict[str, Any]) -> Row:
    """Speed over that of the valid result before it, with its interval."""
    if before is None or not entry["valid"]:
        return {f"change_{part}": "" for part in ("median", "low", "high")}
    ratio = ratio_interval(text_seconds(before), text_seconds(entry), SEED).as_dict()
    return {f"change_{part}": ratio[part] for part in ("median", "low", "high")}
