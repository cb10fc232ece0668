"""Results over git revisions: each target's speed in the order in which it was measured, one line a result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import UserError
from ..harness.document import Interval
from ..harness.statistics import ratio_interval
from .compare import SEED
from .found import find_results, foreign_line
from .load import load_result
from .model import Bench, MeasuredTarget


@dataclass(frozen=True)
class Point:
    """One target of one result. change: its speed over that of the valid result before it; None without one."""

    target: MeasuredTarget
    created: str
    revision: str
    file: Path
    change: Interval | None

    @property
    def line(self) -> tuple[str, ...]:
        """What the points of one table have in common: name, model, dtype, device and configuration."""
        target = self.target
        return target.name, target.model.label, target.policy.label, target.device.name, target.config_sha256[:10]

    def as_row(self) -> dict[str, Any]:
        """Every figure a column; a change that there is not is an empty one."""
        name, model, dtype, device, config = self.line
        samples, change = self.target.figures.samples_per_second, self.change
        return {
            "target": name,
            "model": model,
            "device": device,
            "dtype": dtype,
            "config": config,
            "created": self.created,
            "revision": self.revision,
            "valid": self.target.valid,
            "n": self.target.n,
            **{f"samples_per_second_{part}": value for part, value in samples},
            **{f"change_{part}": "" if change is None else getattr(change, part) for part, _ in samples},
            "file": str(self.file),
        }


@dataclass(frozen=True)
class History:
    """points: one a result and target, by target, oldest first.

    skipped: results that can't be used, and why. foreign: a line about files that are no results, or empty.
    """

    points: tuple[Point, ...]
    skipped: tuple[str, ...]
    foreign: str = ""

    def rows(self) -> list[dict[str, Any]]:
        return [point.as_row() for point in self.points]


def load_history(folder: Path) -> History:
    """The history of all results under `folder`. Raises UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is no folder; give the one that holds results of isotrain bench")
    results: list[tuple[Path, Bench]] = []
    skipped = []
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
            if isinstance(result, Bench):
                results.append((path, result))
    if not results:
        raise UserError(f"{str(folder)!r} holds no result of isotrain bench; measure some with --out {folder}")
    series: dict[tuple[str, ...], list[tuple[Path, Bench, MeasuredTarget]]] = {}
    for path, result in sorted(results, key=lambda found: found[1].created):
        for target in result.measured:
            # Only results that share all of this are points of one line.
            identity = (target.label, target.config_sha256, target.device.name, target.policy.label)
            series.setdefault(identity, []).append((path, result, target))
    points = [point for members in series.values() for point in _points(members)]
    return History(tuple(points), tuple(skipped), foreign_line(found.foreign, folder))


def _points(members: list[tuple[Path, Bench, MeasuredTarget]]) -> Iterator[Point]:
    before: MeasuredTarget | None = None
    for path, result, target in members:
        change = None
        if before is not None and target.valid:
            change = ratio_interval(before.text_seconds, target.text_seconds, SEED)
        yield Point(target, result.created, result.environment.revision, path, change)
        if target.valid:
            before = target
