"""The files of `isotrain predict`. Texts are read and answers written in parts, whatever the number of rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ... import UserError
from ..config.load import load_config
from ..data.columns import IdsSeen
from ..data.tabular import Table
from ..runs.files import written
from ..runs.folder import RunFolder, check_predicts, with_device
from ..tasks import TASKS, Prediction, Task


@dataclass(frozen=True)
class Inputs:
    """A file of texts that has been read once and checked as a whole.

    Attributes:
        columns: The columns of all rows.
        text: The column of the texts.
        text_pair: The column of the second texts of pairs.
        device_ids: The ids that `with_device` must avoid.
    """

    file: Path
    task: Task
    columns: list[str]
    rows: int
    text: str
    text_pair: str | None
    device_ids: frozenset[str]
    version: tuple[int, ...]

    def parts(self) -> Iterator[Table]:
        """Yields the rows, some at a time, all with `columns`.

        Raises:
            UserError: The file has changed since it was checked.
        """
        for part in self.task.parts(self.file):
            if _version(self.file) != self.version:
                raise UserError(f"{self.file} changed while it was read; start again when it is complete")
            yield Table(part.origin, self.columns, part.aligned(self.columns), part.positions, part.unit)

    def texts(self, part: Table) -> tuple[list[str], list[str] | None]:
        """The texts of a part, and the second texts of pairs."""
        return part.column(self.text), None if self.text_pair is None else part.column(self.text_pair)


def read_inputs(
    run: RunFolder, file: Path, text_column: str | None, pair_column: str | None, by_id: bool = False
) -> Inputs:
    """Checks every row of a file of texts before `run` answers any of them.

    Raises:
        UserError: The file can't be used, a cell is empty, an id occurs twice, or, with `by_id`, a row has no id.
    """
    check_predicts(run)
    config = load_config(run.config).config
    task = TASKS[config.task]
    # Read first, so that any later change of the file is noticed.
    version = _version(file)
    columns: dict[str, None] = {}
    rows = 0
    for part in task.parts(file):
        columns |= dict.fromkeys(part.columns)
        rows += len(part.rows)
    header = Table(str(file), list(columns), [], [])
    text, text_pair = task.columns(header, task.recall(run), text_column, pair_column)
    if by_id and "id" not in columns:
        raise UserError(f"{file} has no column id, and {_BY_ID}")
    used = {text, text_pair, config.label_column} - ({"id"} if by_id else set())
    seen = IdsSeen(used)
    device_ids: set[str] = set()
    for part in task.parts(file):
        aligned = Table(part.origin, header.columns, part.aligned(header.columns), part.positions, part.unit)
        for column in (text, text_pair):
            if column is not None:
                _refuse_empty(aligned, column)
        seen.add(aligned)
        if by_id:
            device_ids |= {name for name in answer_ids(aligned) if name.lstrip("_") == "device"}
    return Inputs(file, task, header.columns, rows, text, text_pair, frozenset(device_ids), version)


_BY_ID = "a .json file of answers has them by id: give each row its own, or name a .csv or .jsonl file by --out"


def answer_ids(table: Table) -> list[str]:
    """The id of each row, for answers by id.

    Raises:
        UserError: A row has no id.
    """
    ids = table.column("id")
    for row, cell in enumerate(ids):
        if cell in (None, ""):
            raise UserError(f"{table.place(row)} has no id, and {_BY_ID}")
    return [str(cell) for cell in ids]


def _refuse_empty(table: Table, column: str) -> None:
    for row, text in enumerate(table.column(column)):
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                f"{table.place(row)}: {column} is {text!r}, and a text is needed; fill it in or remove the row"
            )


def _version(file: Path) -> tuple[int, ...]:
    """A value that changes when a file is written to or replaced."""
    try:
        found = file.stat()
    except OSError as error:
        raise UserError(f"{file} can't be read ({error.strerror}); give a readable file") from error
    return found.st_size, found.st_mtime_ns, found.st_ino


def free_names(wanted: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """Maps each of `wanted` to a name that isn't `taken`: itself, or the name after ``predicted_``."""
    wanted, occupied = list(wanted), set(taken)
    found = {}
    for name in wanted:
        free, number = name, 1
        while free in occupied or (free != name and free in wanted):
            free = f"predicted_{name}" if number == 1 else f"predicted_{name}_{number}"
            number += 1
        occupied.add(free)
        found[name] = free
    return found


@dataclass
class AnswerFile:
    """A file of answers that is being written. `names` maps each part of an answer to its name in the file."""

    stream: BinaryIO
    form: str
    inputs: Inputs
    caveat: str
    names: dict[str, str] = field(default_factory=dict)

    def add(self, table: Table, predictions: Sequence[Prediction]) -> None:
        """Writes the answers to some rows of the inputs."""
        answers = [self._with_device(prediction.answer()) for prediction in predictions]
        first = not self.names
        if first:
            taken = () if self.form == ".json" else self.inputs.columns
            self.names = free_names(answers[0], taken)
        if self.form == ".csv":
            text = self._csv(table, answers, first)
        elif self.form == ".jsonl":
            text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in self._rows(table, answers))
        else:
            text = self._by_id(table, answers, first)
        self.stream.write(text.encode("utf-8"))
        self.stream.flush()

    def end(self) -> None:
        """Closes the brackets that the first part opened."""
        if self.form == ".json":
            self.stream.write(b"\n}\n")

    def _with_device(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        return {**answer, **({"device": self.caveat} if self.caveat and self.form != ".json" else {})}

    def _csv(self, table: Table, answers: list[dict[str, Any]], first: bool) -> str:
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer)
        if first:
            writer.writerow([*table.columns, *self.names.values()])
        for row, answer in zip(table.rows, answers, strict=True):
            shown = (f"{value:.6f}" if isinstance(value, float) else _cell(value) for value in answer.values())
            writer.writerow([*map(_cell, row), *shown])
        return buffer.getvalue()

    def _rows(self, table: Table, answers: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for row, answer in zip(table.rows, answers, strict=True):
            named = {self.names[name]: value for name, value in answer.items()}
            yield dict(zip(table.columns, row, strict=True)) | named

    def _by_id(self, table: Table, answers: list[dict[str, Any]], first: bool) -> str:
        """SQuAD's format: answers by id."""
        found = dict(zip(answer_ids(table), (next(iter(answer.values())) for answer in answers), strict=True))
        if first and self.caveat:
            # All ids that could be mistaken for the device's key, including those of later parts.
            key = next(iter(with_device(dict.fromkeys(self.inputs.device_ids), self.caveat)))
            self.names["device"] = key
            found = {key: self.caveat} | found
        entries = ",\n".join(
            f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(answer, ensure_ascii=False)}"
            for name, answer in found.items()
        )
        return ("{\n" if first else ",\n") + entries


@contextmanager
def answer_file(path: Path, inputs: Inputs, caveat: str = "") -> Iterator[AnswerFile]:
    """Writes the rows of `inputs` with their answers to `path`, completely or not at all.

    A name in .jsonl or .csv chooses the format. The input's columns stay as they are. An answer's column gets another
    name if the input already has that one (see `free_names`). A .json file gets SQuAD's format instead, answers by id.

    Args:
        caveat: The backend's, which gets a column ``device``, or in .json the key of `with_device`.

    Raises:
        RunError: The disk is full or broken.
        UserError: `path` can't be written.
    """
    with written(path) as stream:
        file = AnswerFile(stream, path.suffix.lower(), inputs, caveat)
        yield file
        file.end()


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
