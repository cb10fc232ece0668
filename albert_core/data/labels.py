"""Converts label cells, which are ids or names, to class ids and class names."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import UserError
from ...kernels.words import count
from ..config.parsing import read_json
from ..terminal.text import shorten
from .tabular import Table, shown

log = logging.getLogger("isotrain")

# Long enough for any id, short enough for int().
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)
_WHOLE = re.compile(r"[-+]?[0-9]+", re.ASCII)
_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)


def encode_labels(
    train: Table, test: Table | None, column: str, names: Sequence[str] | None = None
) -> tuple[list[int], list[int], list[str]]:
    """Class ids of both tables (from 0, in row order) and the class names, from the cells under `column`.

    Cells are names, or ids if every one is an integer. White space around them is ignored. With `names`, the id of a
    name is its index there, and ids are such indices. If all cells are in `names`, they are names even if they look
    like integers. Without `names`, ids must be 0 to n - 1 without gaps, and names are numbered in sorted order.

    Raises:
        UserError: An empty label, a number with a fraction, a negative id, gaps, a label outside `names`, a test label
            without a training row, or fewer than two classes. The message names the row.
    """
    tables = [train] if test is None else [train, test]
    cells = [_cells(table, column) for table in tables]
    every = [cell for part in cells for cell in part]
    typed_ids = all(isinstance(cell, int) for table in tables for cell in table.column(column))
    whole_numbers = all(_INTEGER.fullmatch(cell) for cell in every)
    if names is not None:
        names = _checked_names(names)
        by_id = whole_numbers and (typed_ids or not set(every) <= set(names))
    else:
        _refuse_fractions(tables, cells)
        by_id = whole_numbers
        if not by_id:
            _warn_of_lookalikes(tables, cells)
    _refuse_two_ways(tables, column, [[int(cell) if by_id else cell for cell in part] for part in cells])
    # Checked before the test labels, which would otherwise be called unseen.
    if len({int(cell) for cell in cells[0]} if by_id else set(cells[0])) < 2:
        raise UserError(
            f"{train.origin} has one label only ({shown(set(cells[0]))}) under {column!r}; give rows of two or more"
        )
    if by_id:
        encoded = [[int(cell) for cell in part] for part in cells]
        names = _names_of_ids(tables, encoded, column, names)
    else:
        names = sorted(set(cells[0])) if names is None else names
        encoded = _encode_names(tables, cells, column, names)
    return encoded[0], encoded[1] if test is not None else [], list(names)


def names_from_column(tables: Sequence[Table], id_column: str, name_column: str) -> list[str] | None:
    """Class names from a column beside the ids (``label_text`` beside ``label``), or None if the labels are no ids.

    Raises UserError if one id has two names, or one name two ids.
    """
    name_of: dict[int, str] = {}
    for table in tables:
        pairs = zip(_cells(table, id_column), table.column(name_column), strict=True)
        for row, (cell, name) in enumerate(pairs):
            if not _INTEGER.fullmatch(cell):
                return None
            if not isinstance(name, str) or not name.strip():
                raise UserError(f"{table.place(row)}: {name_column!r} is {name!r}; give every row its label's name")
            known = name_of.setdefault(int(cell), name.strip())
            if known != name.strip():
                raise UserError(
                    f"{table.place(row)}: label {cell} is called {name.strip()!r} here and {known!r} before; give each "
                    f"id one name, or set label_column to {name_column!r}"
                )
    if sorted(name_of) != list(range(len(name_of))):
        return None
    return _checked_names([name_of[index] for index in range(len(name_of))])


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
            raise UserError(f"{table.place(row)}: the label ({column!r}) is empty; give every row a label")
        if isinstance(cell, bool):
            # As JSON writes it.
            cell = str(cell).lower()
        if not isinstance(cell, int | str | float):
            raise UserError(f"{table.place(row)}: the label {shown([cell])} is no name and no id; give one of them")
        if isinstance(cell, float):
            raise UserError(_fraction_message(table, row, cell))
        cells.append(str(cell).strip())
    return cells


def _refuse_two_ways(tables: Sequence[Table], column: str, classes: Sequence[Sequence[int | str]]) -> None:
    """Raises UserError if a file writes one class as 1 and as "1", since they may be meant as two."""
    for table, part in zip(tables, classes, strict=True):
        first: dict[int | str, Any] = {}
        for row, (label, cell) in enumerate(zip(part, table.column(column), strict=True)):
            known = first.setdefault(label, cell)
            if type(known) is not type(cell):
                raise UserError(
                    f"{table.place(row)}: the label {shown([cell])} stands as {shown([known])} before, and the two "
                    "would be one class; write it in one way"
                )


def _warn_of_lookalikes(tables: Sequence[Table], cells: Sequence[Sequence[str]]) -> None:
    """Warns of names that are probably mistakes: one word among ids, and names that differ only in letter case."""
    places = [(table, row, cell) for table, part in zip(tables, cells, strict=True) for row, cell in enumerate(part)]
    words = [place for place in places if not _DECIMAL.fullmatch(place[2])]
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


def _refuse_fractions(tables: Sequence[Table], cells: Sequence[Sequence[str]]) -> None:
    if not all(_DECIMAL.fullmatch(cell) for part in cells for cell in part):
        return
    for table, part in zip(tables, cells, strict=True):
        for row, cell in enumerate(part):
            if not _INTEGER.fullmatch(cell):
                raise UserError(_fraction_message(table, row, cell))


def _fraction_message(table: Table, row: int, cell: Any) -> str:
    what = "an id too large" if _WHOLE.fullmatch(str(cell)) else "a number with a fraction"
    return (
        f"{table.place(row)}: the label {shorten(str(cell))} is {what}; allowed are integers from 0, or names; "
        "write it as an integer (1, not 1.0)"
    )


def _names_of_ids(
    tables: Sequence[Table], encoded: Sequence[Sequence[int]], column: str, names: list[str] | None
) -> list[str]:
    for table, part in zip(tables, encoded, strict=True):
        for row, label in enumerate(part):
            if label < 0:
                raise UserError(
                    f"{table.place(row)}: the label {label} is negative; allowed are ids from 0 (a hidden test label "
                    "can't be evaluated: give a split that has its labels)"
                )
            if names is not None and label >= len(names):
                raise UserError(
                    f"{table.place(row)}: the label {label} has no name, there are {len(names)}; "
                    f"allowed are ids 0 to {len(names) - 1}"
                )
    seen = set(encoded[0])
    if names is None:
        holes = [label for label in range(min(max(seen) + 1, len(seen) + 1)) if label not in seen]
        if holes:
            raise UserError(
                f"{tables[0].origin}: the label ids under {column!r} are {min(seen)} to {max(seen)} with holes "
                f"(missing: {holes[0]}{', ...' if len(seen) <= max(seen) - 1 else ''}); allowed are 0 to n - 1; "
                "number them anew, or write names"
            )
    _refuse_unseen(tables, encoded, seen)
    return [str(label) for label in range(len(seen))] if names is None else names


def _encode_names(
    tables: Sequence[Table], cells: Sequence[Sequence[str]], column: str, names: Sequence[str]
) -> list[list[int]]:
    _refuse_unseen(tables, cells, set(cells[0]))
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


def _refuse_unseen(tables: Sequence[Table], labels: Sequence[Sequence[int | str]], seen: set[Any]) -> None:
    for table, part in zip(tables[1:], labels[1:], strict=True):
        unseen = {label: row for row, label in reversed(list(enumerate(part))) if label not in seen}
        if unseen:
            first = min(unseen.values())
            raise UserError(
                f"{table.place(first)}: {count(len(unseen), 'label')} without a training row: {shown(sorted(unseen))}; "
                "correct them, or add training rows with them"
            )
