"""Converts label cells, which are names or whole numbers, to class ids and class names."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import UserError
from ...kernels.words import count
from ..config.parsing import json_kind, read_json
from ..terminal.text import shorten
from .missing import LEAVE_OUT
from .tabular import Table, shown

log = logging.getLogger("isotrain")

# Long enough for any id, short enough for int(). Data frames write whole numbers as 1.0 if some rows have none.
_INTEGER = re.compile(r"([-+]?[0-9]{1,18})(\.0*)?", re.ASCII)
_WHOLE = re.compile(r"[-+]?[0-9]+(\.0*)?", re.ASCII)
DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)


@dataclass(frozen=True)
class EncodedLabels:
    """The labels of the training and the test table, in row order, and the names of the head's outputs.

    Labels are class ids (from 0), or lists with a number for each output. `remark` says how numbers that are no ids
    were numbered. It is empty if none were.
    """

    train: list[Any]
    test: list[Any]
    names: list[str]
    remark: str = ""


def encode_labels(train: Table, test: Table | None, column: str, names: Sequence[str] | None = None) -> EncodedLabels:
    """The classes of both tables, from the cells under `column`.

    Cells are names, or numbers if every one is a whole number (``1``, or ``1.0`` as data frames write it). White space
    around them is ignored. With `names`, the id of a name is its index there, and numbers are such ids. If all cells
    are in `names`, they are names even if they look like numbers. Without `names`, the id of a name or number is its
    place among the sorted ones of the training table.

    Raises:
        UserError: An empty label, a number with a fraction, a label outside `names`, a test label without a training
            row, or fewer than two classes. The message names the row.
    """
    tables = [train] if test is None else [train, test]
    cells = [_cells(table, column) for table in tables]
    every = {cell for part in cells for cell in part}
    lowered = {cell.lower() for cell in every}
    if names is None and lowered <= {"true", "false"} and len(lowered) < len(every):
        # Booleans as several programs write them.
        cells = [[cell.lower() for cell in part] for part in cells]
    numbers = None
    if names is None:
        numbers = _whole_numbers(tables, cells)
        if numbers is None:
            _warn_of_lookalikes(tables, cells)
    else:
        names = _checked_names(names)
        written = any(isinstance(cell, str) for table in tables for cell in table.column(column))
        if not (written and every <= set(names)):
            numbers = _whole_numbers(tables, cells)
    labels: Sequence[Sequence[int | str]] = cells if numbers is None else numbers
    _refuse_two_ways(tables, column, labels)
    # Checked before the test labels, which would otherwise be called unseen.
    if len(set(labels[0])) < 2:
        raise UserError(
            f"{train.origin} has one label only ({shown(set(cells[0]))}) under {column!r}; give rows of two or more"
        )
    remark = ""
    if numbers is None:
        names = sorted(set(cells[0])) if names is None else names
        encoded = _encode_names(tables, cells, column, names)
    elif names is None:
        encoded, names, remark = _numbered(tables, numbers, column)
    else:
        _check_ids(tables, numbers, names)
        encoded = numbers
    return EncodedLabels(encoded[0], encoded[1] if test is not None else [], list(names), remark)


def names_from_column(tables: Sequence[Table], id_column: str, name_column: str) -> list[str] | None:
    """Class names from a column beside the ids (``label_text`` beside ``label``), in the order of the ids.

    None if the labels are no numbers. Raises UserError if one id has two names, or one name two ids.
    """
    name_of: dict[int, str] = {}
    for table in tables:
        pairs = zip(_cells(table, id_column), table.column(name_column), strict=True)
        for row, (cell, name) in enumerate(pairs):
            number = _INTEGER.fullmatch(cell)
            if not number:
                return None
            if not isinstance(name, str) or not name.strip():
                raise UserError(f"{table.place(row)}: {name_column!r} is {name!r}; give every row its label's name")
            known = name_of.setdefault(int(number[1]), name.strip())
            if known != name.strip():
                raise UserError(
                    f"{table.place(row)}: label {cell} is called {name.strip()!r} here and {known!r} before; give each "
                    f"id one name, or set label_column to {name_column!r}"
                )
    return _checked_names([name for _, name in sorted(name_of.items())])


def read_categories(path: Path) -> list[str]:
    """The label names in a ``categories.json``: a JSON list of distinct strings, in the order of their ids.

    Raises UserError for a file with other content.
    """
    names = read_json(path, "give a list of label names, or remove the file")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is no list of label names; give a JSON list of strings, or remove the file")
    return names


def _checked_names(names: Sequence[str]) -> list[str]:
    stripped = [name.strip() for name in names]
    twice = sorted(name for name, times in Counter(stripped).items() if times > 1)
    if twice:
        raise UserError(f"label names appear twice: {shown(twice)}; give each class a name of its own")
    return stripped


def _cells(table: Table, column: str) -> list[str]:
    cells = []
    for row, cell in enumerate(table.column(column)):
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            raise UserError(f"{table.place(row)}: the label ({column!r}) is empty; give every row a label, {LEAVE_OUT}")
        if isinstance(cell, bool):
            # As JSON writes it.
            cell = str(cell).lower()
        if not isinstance(cell, int | str | float):
            several = ", or set task: multi_label_classification" if isinstance(cell, list) else ""
            raise UserError(
                f"{table.place(row)}: the label {shown([cell])} is no name and no number; give one of them{several}"
            )
        if isinstance(cell, float):
            if not cell.is_integer():
                raise UserError(_fraction_message(table, row, cell))
            cell = int(cell)
        cells.append(str(cell).strip())
    return cells


def _refuse_two_ways(tables: Sequence[Table], column: str, classes: Sequence[Sequence[int | str]]) -> None:
    """Raises UserError if a file writes one class as 1 and as "1", or as 1 and as true."""
    for table, part in zip(tables, classes, strict=True):
        first: dict[int | str, Any] = {}
        kinds: dict[str, Any] = {}
        for row, (label, cell) in enumerate(zip(part, table.column(column), strict=True)):
            kinds.setdefault(json_kind(cell), cell)
            if {"true or false", "number"} <= kinds.keys():
                raise UserError(
                    f"{table.place(row)}: the labels are {shown(kinds.values())}; write all as booleans, or all as "
                    "numbers"
                )
            known = first.setdefault(label, cell)
            if json_kind(known) != json_kind(cell):
                raise UserError(
                    f"{table.place(row)}: the label {shown([cell])} stands as {shown([known])} before, and the two "
                    "would be one class; write it in one way"
                )


def _warn_of_lookalikes(tables: Sequence[Table], cells: Sequence[Sequence[str]]) -> None:
    """Warns of names that are probably mistakes: one word among ids, and names that differ only in letter case."""
    places = [(table, row, cell) for table, part in zip(tables, cells, strict=True) for row, cell in enumerate(part)]
    words = [place for place in places if not DECIMAL.fullmatch(place[2])]
    if len(words) * 2 < len(places):
        table, row, cell = words[0]
        log.warning(
            "%s: the label %s is no number, as most are: all labels are names now, and none is an id",
            table.place(row),
            shown([cell]),
        )
    first: dict[str, str] = {}
    for table, row, cell in places:
        known = first.setdefault(cell.casefold(), cell)
        if known != cell:
            log.warning(
                "%s: the labels %s differ in letter case alone and are two classes; label_rules: [case] makes them one",
                table.place(row),
                shown([known, cell]),
            )
            return


def _whole_numbers(tables: Sequence[Table], cells: Sequence[Sequence[str]]) -> list[list[int]] | None:
    """The labels as whole numbers, or None if one is no number. Raises UserError for a number with a fraction."""
    if not all(DECIMAL.fullmatch(cell) for part in cells for cell in part):
        return None
    numbers: list[list[int]] = []
    for table, part in zip(tables, cells, strict=True):
        numbers.append([])
        for row, cell in enumerate(part):
            whole = _INTEGER.fullmatch(cell)
            if not whole:
                raise UserError(_fraction_message(table, row, cell))
            numbers[-1].append(int(whole[1]))
    return numbers


def _fraction_message(table: Table, row: int, cell: Any) -> str:
    what = "an id too large" if _WHOLE.fullmatch(str(cell)) else "a number with a fraction"
    label = shorten(str(cell))
    return f"{table.place(row)}: the label {label} is {what}; allowed are whole numbers (1 or 1.0), or names"


def _numbered(
    tables: Sequence[Table], numbers: Sequence[Sequence[int]], column: str
) -> tuple[list[list[int]], list[str], str]:
    """Ids in the numbers' order, the names by id, and a remark if a number is not its own id."""
    seen = sorted(set(numbers[0]))
    _refuse_negative(tables, numbers, seen)
    _refuse_unseen(tables, numbers, seen)
    index = {number: label for label, number in enumerate(seen)}
    remark = ""
    if seen[0] != 0 or seen[-1] != len(seen) - 1:
        remark = f"{tables[0].origin}: the labels {shown(seen)} under {column!r} have the ids 0 to {len(seen) - 1}"
    return [[index[number] for number in part] for part in numbers], [str(number) for number in seen], remark


def _check_ids(tables: Sequence[Table], ids: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    _refuse_negative(tables, ids, ())
    for table, part in zip(tables, ids, strict=True):
        for row, label in enumerate(part):
            if label >= len(names):
                raise UserError(
                    f"{table.place(row)}: the label {label} has no name, there are {len(names)}; "
                    f"allowed are ids 0 to {len(names) - 1}"
                )
    _refuse_unseen(tables, ids, ids[0])


def _refuse_negative(tables: Sequence[Table], ids: Sequence[Sequence[int]], allowed: Collection[int]) -> None:
    for table, part in zip(tables, ids, strict=True):
        for row, label in enumerate(part):
            if label < 0 and label not in allowed:
                raise UserError(
                    f"{table.place(row)}: the label {label} is negative and stands for no class; if it hides the true "
                    "label, give a split that shows it"
                )


def _encode_names(
    tables: Sequence[Table], cells: Sequence[Sequence[str]], column: str, names: Sequence[str]
) -> list[list[int]]:
    _refuse_unseen(tables, cells, cells[0])
    index = {name: number for number, name in enumerate(names)}
    for table, part in zip(tables, cells, strict=True):
        for row, cell in enumerate(part):
            if cell not in index:
                unknown = sorted(set(part) - set(index))
                raise UserError(
                    f"{table.place(row)}: {count(len(unknown), 'label')} under {column!r} beside the "
                    f"{count(len(index), 'label name')}: {shown(unknown)}; add them to the names, or correct the rows"
                )
    return [[index[cell] for cell in part] for part in cells]


def _refuse_unseen(
    tables: Sequence[Table], labels: Sequence[Sequence[int | str]], trained: Collection[int | str]
) -> None:
    seen = set(trained)
    for table, part in zip(tables[1:], labels[1:], strict=True):
        unseen = {label: row for row, label in reversed(list(enumerate(part))) if label not in seen}
        if unseen:
            first = min(unseen.values())
            raise UserError(
                f"{table.place(first)}: {count(len(unseen), 'label')} without a training row: {shown(sorted(unseen))}; "
                "correct them, or add training rows with them"
            )
