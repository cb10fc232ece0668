"""Reads and checks every result under a folder. Files that can't be used are left out and listed with the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from .... import UserError
from ....albert_core.config.parsing import decoded, parse_json
from ....albert_core.output.charts import Point
from ...outcome.end_to_end import END_TO_END, EndToEnd
from ...outcome.found import LARGEST_FILE, METRICS, RECORD, find_results, foreign_line
from ...outcome.load import problems
from ...outcome.model import BENCH, Bench
from ...outcome.parity import PARITY, Parity
from ...outcome.training_run import RunProfile, RunRecord, RunSummary
from ...outcome.upgrade import schema_of, upgraded
from .text import clean

MODELS: dict[str, type[Bench] | type[EndToEnd] | type[Parity]] = {BENCH: Bench, END_TO_END: EndToEnd, PARITY: Parity}

SUMMARY = "summary.json"

Document = TypeVar("Document")
Checked = TypeVar("Checked", bound=BaseModel)

# Figures of an evaluation. Their names become names of files and anchors on the page.
EVALUATION = re.compile(r"eval/[\w-]+", re.ASCII)


@dataclass(frozen=True)
class Found(Generic[Document]):
    """A document and its path relative to the folder that was searched."""

    path: str
    document: Document


@dataclass(frozen=True)
class Run:
    """A training run's folder.

    Attributes:
        summary: How the run ended; None if it hasn't ended.
        loss: By step.
        evaluations: By step, for "loss" and the task's other figures.
        profiles: What profiled steps cost.
    """

    record: RunRecord
    summary: RunSummary | None
    loss: tuple[Point, ...]
    evaluations: dict[str, tuple[Point, ...]]
    samples_per_second: tuple[float, ...]
    profiles: tuple[RunProfile, ...]


@dataclass(frozen=True)
class Skipped:
    """A file that the report doesn't use, and the reason."""

    path: str
    reason: str


@dataclass
class Results:
    """Everything that a report is made from, each kind in the order of paths. foreign: unrelated files."""

    folder: Path
    bench: list[Found[Bench]] = field(default_factory=list)
    end_to_end_runs: list[Found[EndToEnd]] = field(default_factory=list)
    parity: list[Found[Parity]] = field(default_factory=list)
    runs: list[Found[Run]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    foreign: tuple[Path, ...] = ()

    @contextmanager
    def watched(self, name: str) -> Iterator[None]:
        """A context for reading one file, which records why it can't be used."""
        try:
            yield
        except _UnusableError as error:
            self.skipped.append(Skipped(name, str(error)))
        except OSError as error:
            self.skipped.append(Skipped(name, f"can't be read ({error.strerror})"))

    @property
    def count(self) -> int:
        return len(self.bench) + len(self.end_to_end_runs) + len(self.parity) + len(self.runs)


_AGAIN = "write it again"


class _UnusableError(ValueError):
    """A file can't be used; the message says why."""


def load_results(folder: Path) -> Results:
    """Reads the results under `folder`, at any depth.

    Raises:
        UserError: There is none that a report can show.
    """
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is no folder; give one that holds results or training runs")
    results = Results(folder)
    found = find_results(folder)
    for path in found.runs:
        name = clean(str(path.relative_to(folder))) if path != folder else folder.resolve().name
        with results.watched(name):
            results.runs.append(Found(name, _read_run(path)))
    for path, _ in found.results:
        name = clean(str(path.relative_to(folder)))
        with results.watched(name):
            _sort_in(results, name, _read_result(path))
    results.foreign = found.foreign
    if results.count == 0:
        raise UserError(_nothing(results))
    return results


def of_document(document: Bench | EndToEnd | Parity) -> Results:
    """One result, of this process, for a page of its own."""
    results = Results(Path())
    _sort_in(results, "", _checked(type(document), _cleaned(document.document())))
    return results


def _nothing(results: Results) -> str:
    seen = "; ".join(f"{one.path}: {one.reason}" for one in results.skipped[:3])
    more = f"; and {len(results.skipped) - 3} more" if len(results.skipped) > 3 else ""
    other = foreign_line(results.foreign, results.folder) or "it holds no result"
    return (
        f"nothing under {str(results.folder)!r} can be shown ({seen + more if seen else other}); give a "
        "folder with results of isotrain bench or isotrain parity, or with training runs"
    )


def _read_result(path: Path) -> Bench | EndToEnd | Parity:
    value = upgraded(_json(path))
    schema = schema_of(value)
    if not isinstance(schema, str) or schema not in MODELS:
        raise _UnusableError(f"its schema {clean(str(schema))[:60]!r} is none of {', '.join(MODELS)}")
    return _checked(MODELS[schema], _cleaned(value))


def _cleaned(value: Any) -> Any:
    """A document with all its texts cleaned for the page."""
    if isinstance(value, dict):
        return {clean(key): _cleaned(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_cleaned(part) for part in value]
    return clean(value) if isinstance(value, str) else value


def _sort_in(results: Results, name: str, document: Bench | EndToEnd | Parity) -> None:
    if isinstance(document, Bench):
        results.bench.append(Found(name, document))
    elif isinstance(document, EndToEnd):
        results.end_to_end_runs.append(Found(name, document))
    else:
        results.parity.append(Found(name, document))


def _read_run(folder: Path) -> Run:
    if not (folder / RECORD).is_file():
        raise _UnusableError(f"no training run of isotrain: {METRICS} without {RECORD}")
    record = _checked(RunRecord, _cleaned(upgraded(_json(folder / RECORD))))
    summary = _checked(RunSummary, _cleaned(_json(folder / SUMMARY))) if (folder / SUMMARY).is_file() else None
    lines = list(_lines(folder / METRICS))

    def curve(key: str) -> tuple[Point, ...]:
        return tuple((line["step"], _number(line[key])) for line in lines if key in line)

    found = sorted({key for line in lines for key in line if EVALUATION.fullmatch(key)})
    return Run(
        record=record,
        summary=summary,
        loss=curve("train/loss"),
        evaluations={key.removeprefix("eval/"): curve(key) for key in found},
        samples_per_second=tuple(value for _, value in curve("samples_per_second") if value is not None),
        profiles=tuple(
            _checked(RunProfile, _cleaned(_json(path))) for path in sorted(folder.glob("profile-*/operators.json"))
        ),
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file. The last one may be incomplete if the run was killed or is still running."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, text in enumerate(lines, start=1):
        try:
            line = parse_json(text, METRICS, "remove the line", number)
        except UserError as error:
            if number == len(lines):
                return
            raise _UnusableError(f"{METRICS}:{number} is no JSON") from error
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise _UnusableError(f"{METRICS}:{number} has no step")
        yield line


def _number(value: Any) -> float | None:
    """A figure, or None if it isn't finite. The file has "NaN" and "Infinity" as texts."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < math.inf else None


def _json(path: Path) -> Any:
    if path.stat().st_size > LARGEST_FILE:
        raise _UnusableError(f"larger than {LARGEST_FILE // 2**20} MiB")
    try:
        return parse_json(decoded(path.read_bytes(), path.name, _AGAIN), path.name, _AGAIN, halves=True)
    except UserError as error:
        raise _UnusableError(str(error)) from error


# Words by pydantic's type of error, since its own messages name Python's types.
_WORDS = {
    "missing": "is missing",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
    "string_type": "must be a text",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
}


def _checked(model: type[Checked], value: Any) -> Checked:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = problems(error)[0]
        where = first.place or "document"
        others = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        said = _WORDS.get(first.kind, first.said.replace("Input should", "must"))
        raise _UnusableError(f"not as its schema says: {clean(where)}: {clean(said)}{others}") from error
