"""Results over git revisions: each target's speed in the order in which it was measured, and where it changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ... import UserError
from ..harness.document import Interval
from ..outcome.found import find_results, foreign_line
from ..outcome.limits import speed_ratio
from ..outcome.load import load_result
from ..outcome.model import Bench, MeasuredTarget
from .changes import LEAST_RESULTS, Fit, fit
from .identity import Difference, differences, of_history
from .metrics import METRICS, SEED, SPEED


@dataclass(frozen=True)
class Point:
    """One target of one result.

    change: its speed over that of the last result before it that can be compared with; None where either can't be.
    environment: the recorded facts that decide speed, by name. renewed: those that differ from the last recorded ones.
    """

    target: MeasuredTarget
    created: str
    revision: str
    file: Path
    change: Interval | None
    environment: dict[str, str]
    renewed: tuple[Difference, ...]

    @property
    def identity(self) -> tuple[str, ...]:
        """What the points of one course have in common: name, model, dtype, device and configuration."""
        target = self.target
        return target.name, target.model.label, target.policy.label, target.device.name, target.config_sha256[:10]

    @property
    def comparable(self) -> bool:
        """Whether its speed is that of the revision: valid, and measured while no other work took the CPUs."""
        return self.target.valid and not self.target.contended

    @property
    def speed(self) -> float:
        return self.target.figures.samples_per_second.median

    def as_row(self) -> dict[str, Any]:
        """Every figure a column; a change that there is not is an empty one."""
        name, model, dtype, device, config = self.identity
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
            "contended": self.target.contended,
            "n": self.target.n,
            **{f"samples_per_second_{part}": value for part, value in samples},
            **{f"change_{part}": "" if change is None else getattr(change, part) for part, _ in samples},
            "environment_change": "; ".join(f"{one.key}: {one.before} -> {one.after}" for one in self.renewed),
            "file": str(self.file),
        }


@dataclass(frozen=True)
class Step:
    """A change of a target's level. at: the first result of the new one; factor: its speed over the one before.

    before, since: results of the two levels. renewed: names of what else changed between them.
    """

    at: Point
    factor: float
    before: int
    since: int
    renewed: tuple[str, ...]


@dataclass(frozen=True)
class Course:
    """One target over all results, oldest first; `fit` is of the comparable ones."""

    points: tuple[Point, ...]
    fit: Fit

    @property
    def comparable(self) -> list[Point]:
        return [point for point in self.points if point.comparable]

    @property
    def lacking(self) -> int:
        """Comparable results that are missing before a change can be found."""
        return max(0, LEAST_RESULTS - len(self.comparable))

    @property
    def steps(self) -> list[Step]:
        points, levels = self.comparable, self.fit.levels
        bounds = (0, *self.fit.splits, len(points))
        return [
            Step(
                points[at],
                levels[place + 1] / levels[place],
                at - bounds[place],
                bounds[place + 2] - at,
                tuple(one.key for one in differences(points[at - 1].environment, points[at].environment)),
            )
            for place, at in enumerate(self.fit.splits)
        ]

    @property
    def of_first(self) -> float:
        """The newest level over the first one: what all changes come to."""
        return self.fit.levels[-1] / self.fit.levels[0] if self.fit.levels else 1.0

    @property
    def of_best(self) -> float:
        """The newest level over the fastest one."""
        return self.fit.levels[-1] / max(self.fit.levels) if self.fit.levels else 1.0

    @property
    def is_worse(self) -> bool:
        """Whether the newest level is slower than the one before it, or the target creeps towards slower."""
        return len(self.fit.levels) > 1 and self.fit.levels[-1] < self.fit.levels[-2]

    def document(self) -> dict[str, Any]:
        return {
            "target": self.points[0].identity[0],
            "config": self.points[0].identity[-1],
            "comparable": len(self.comparable),
            "lacking": self.lacking,
            "steps": [
                {**vars(step), "at": {"created": step.at.created, "revision": step.at.revision}} for step in self.steps
            ],
            "creep": self.fit.creep,
            "of_first": self.of_first,
            "of_best": self.of_best,
            "worse": self.is_worse,
        }


@dataclass(frozen=True)
class History:
    """courses: one a target, in the order of their first results.

    skipped: results that can't be used, and why. foreign: a line about files that are no results, or empty.
    """

    courses: tuple[Course, ...]
    skipped: tuple[str, ...]
    foreign: str = ""

    @property
    def points(self) -> list[Point]:
        return list(chain.from_iterable(course.points for course in self.courses))

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
    courses = tuple(_course(members) for members in series.values())
    return History(courses, tuple(skipped), foreign_line(found.foreign, folder))


def _course(members: list[tuple[Path, Bench, MeasuredTarget]]) -> Course:
    points: list[Point] = []
    base: MeasuredTarget | None = None
    recorded: dict[str, str] = {}
    for path, result, target in members:
        environment = of_history(result.environment, target)
        point = Point(
            target,
            result.created,
            result.environment.revision,
            path,
            None,
            environment,
            tuple(differences(recorded, environment)),
        )
        recorded |= environment
        if point.comparable:
            if base is not None:
                point = replace(point, change=speed_ratio(base, target, SEED))
            base = target
        points.append(point)
    return Course(tuple(points), fit([point.speed for point in points if point.comparable], METRICS[SPEED].gate))
