"""Histories as tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from ...albert_core.output.live import as_blocks
from ...albert_core.terminal.text import figure
from ..regression.history import Course, History, Point, Step
from .blocks import Column, Table
from .terminal import fitted

# From this width on, a row has the interval and the number of blocks.
NARROW = 72


def print_history(history: History, console: Console) -> None:
    """A block a target: its course in a line, what changed, and a row a result."""
    for course in history.courses:
        name, model, dtype, device, config = course.points[0].identity
        console.print(Text(name, style="bold"))
        lines = [Text(f"{model}, {dtype}, {device}, configuration {config}"), *_sparks(course), *_changes(course)]
        for line in lines:
            console.print(Padding(line, (0, 0, 0, 1)))
        results = Table("", POINTS, course.points, lambda point: _style(point) if point.target.valid else "red")
        console.print(Padding(fitted(results, console), (0, 0, 1, 1)))
    for reason in history.skipped:
        console.print(Text(f"left out: {reason}"))
    if history.foreign:
        console.print(Text(history.foreign, style="dim"))


def change_lines(course: Course) -> list[str]:
    """The changes of a target's level, and its creep, each in words."""
    lines = [_step_words(step) for step in course.steps]
    if course.fit.creep is not None:
        rate = f"{course.fit.creep - 1:+.1%} a result"
        lines.append(f"{_direction(course.fit.creep)}: it creeps by {rate} over {len(course.comparable)} results")
    if lines:
        lines.append(f"newest level: {course.of_first:.3f}x the first, {course.of_best:.3f}x the best")
    return lines


def _step_words(step: Step) -> str:
    why = f"; {', '.join(step.renewed)} changed, too" if step.renewed else ""
    where = f"{step.at.revision} ({_day(step.at)})"
    results = f"{step.before} results before, {step.since} since"
    return f"{_direction(step.factor)} since {where}: {step.factor:.3f}x, {results}{why}"


def _direction(factor: float) -> str:
    return "slower" if factor < 1 else "faster"


def _day(point: Point) -> str:
    return point.created[:16].replace("T", " ")


def _sparks(course: Course) -> list[Text]:
    """The valid results as blocks, and what the lowest and the highest stand for; nothing where it has no course.

    Contended results are dim, "x" is an invalid one, and "|" stands before a result that starts a new level.
    """
    speeds = [point.speed for point in course.points if point.target.valid]
    if len(speeds) < 2:
        return []
    blocks, starts = iter(as_blocks(speeds)), [step.at for step in course.steps]
    line = Text()
    for point in course.points:
        line.append("|" if point in starts else "")
        line.append(next(blocks) if point.target.valid else "x", style=_style(point))
    line.append(f"  {figure(min(speeds))} to {figure(max(speeds))} samples/s, last {figure(speeds[-1])}")
    return [line]


def _changes(course: Course) -> list[Text]:
    """What changed, and what can't be known."""
    style = "bold red" if course.is_worse else "bold"
    lines = [Text(line, style=style) for line in change_lines(course)]
    if course.lacking:
        lacking = f"too few to find a change: {course.lacking} more needed that are valid and not contended"
        lines.append(Text(lacking, style="dim"))
    for point in course.points:
        if point.renewed:
            renewed = "; ".join(one.words() for one in point.renewed)
            lines.append(Text(f"environment since {point.revision} ({_day(point)}): {renewed}", style="yellow"))
    return lines


def _style(point: Point) -> str:
    return "dim" if point.target.contended else ""


def _change(point: Point) -> str:
    """The ratio to the result before. An asterisk says that its interval excludes 1."""
    if point.change is not None:
        clear = "*" if point.change.low > 1 or point.change.high < 1 else ""
        return f"{point.change.median:.3f}x{clear}"
    return "INVALID" if not point.target.valid else "contended" if point.target.contended else ""


POINTS: tuple[Column[Point], ...] = (
    Column("measured", _day, numeric=False),
    Column("revision", lambda point: point.revision, numeric=False),
    Column("samples/s", lambda point: figure(point.target.figures.samples_per_second.median)),
    Column("95 % interval", lambda point: point.target.figures.samples_per_second.words(), least_width=NARROW),
    Column("n", lambda point: str(point.target.n), least_width=NARROW),
    Column("change", _change),
)
