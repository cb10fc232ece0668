"""What the cells under the label columns are: classes, sets of classes, or numbers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from ... import UserError
from ..config.parsing import json_kind, parse_json
from .columns import LABEL_COLUMNS
from .labels import DECIMAL, EncodedLabels, encode_labels
from .missing import LEAVE_OUT
from .tabular import Table, shown

log = logging.getLogger("isotrain")

NUMBER_COLUMNS = ("score", "similarity_score", "similarity", "label", "target", "value", "rating", "stars")

_FLAGS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}
# Targets are stored as float32.
_LARGEST = 3.4e38


@dataclass(frozen=True)
class LabelKind:
    """How a task reads labels.

    Attributes:
        usual: The usual names of a single label column.
        encode: Gets the tables (training first), the label columns and, if they are known, the names of the classes.
        of_classes: Whether a label is the id of one class, so that a share of each class can be held out.
        empty_is_label: Whether an empty text is a row without classes, and not a missing label.
    """

    usual: tuple[str, ...]
    encode: Callable[[Sequence[Table], Sequence[str], Sequence[str] | None], EncodedLabels]
    of_classes: bool = False
    empty_is_label: bool = False


def _encode_classes(tables: Sequence[Table], columns: Sequence[str], names: Sequence[str] | None) -> EncodedLabels:
    return encode_labels(tables[0], tables[1] if len(tables) > 1 else None, columns[0], names)


CLASSES = LabelKind(LABEL_COLUMNS, _encode_classes, of_classes=True)


def class_sets(separator: str, *, by_column: bool) -> LabelKind:
    """Sets of classes: a row's label is 1.0 for each class that it has, and 0.0 for each other.

    Args:
        separator: What stands between the names in a text.
        by_column: Whether each class has a column of its own, which holds 0 or 1.
    """
    if by_column:
        return LabelKind(LABEL_COLUMNS, _encode_flags)
    return LabelKind(("labels", *LABEL_COLUMNS), partial(_encode_sets, separator=separator), empty_is_label=True)


def _encode_flags(tables: Sequence[Table], columns: Sequence[str], names: Sequence[str] | None) -> EncodedLabels:
    del names
    return _encoded([_by_row(table, columns, _flag) for table in tables], columns)


def _flag(table: Table, row: int, column: str, cell: Any) -> float:
    found = _FLAGS.get(str(cell).strip().lower())
    if found is None:
        raise UserError(
            f"{table.place(row)}: the label {column!r} is {shown([cell])}; write 1 if the row has this label, else 0"
        )
    return found


def _encode_sets(
    tables: Sequence[Table], columns: Sequence[str], names: Sequence[str] | None, separator: str
) -> EncodedLabels:
    (column,) = columns
    cells = [_by_row(table, columns, partial(_names, separator=separator)) for table in tables]
    _warn_of_separator(tables[0], column, separator)
    ids: dict[str, int] = {}
    if names is None:
        found = {name for (listed,) in cells[0] for name in listed}
        # Ids in the order of their numbers.
        names = sorted(found, key=lambda name: (len(name) if name.isdigit() else 0, name))
        fix = "correct it, or add training rows with it"
    else:
        ids = {str(number): number for number in range(len(names))}
        fix = f"allowed are {shown(names)}; correct it, or add it to the names"
    if not names:
        raise UserError(f"{tables[0].origin} has no label in any row under {column!r}; give rows that have labels")
    ids |= {name: number for number, name in enumerate(names)}

    def flags(table: Table, row: int, listed: Sequence[str]) -> list[float]:
        unknown = [name for name in listed if name not in ids]
        if unknown:
            raise UserError(f"{table.place(row)}: the label {shown(unknown)} is unknown; {fix}")
        chosen = {ids[name] for name in listed}
        return [float(number in chosen) for number in range(len(names))]

    encoded = [
        [flags(table, row, listed) for row, (listed,) in enumerate(part)]
        for table, part in zip(tables, cells, strict=True)
    ]
    return _encoded(encoded, names)


def _names(table: Table, row: int, column: str, cell: Any, separator: str) -> list[str]:
    """The names in one cell: a list, a JSON list as text, or names between separators."""
    if isinstance(cell, str) and not cell.lstrip().startswith("["):
        return [name.strip() for name in cell.split(separator) if name.strip()]
    advice = 'write a list such as ["a", "b"]'
    listed = cell
    if isinstance(cell, str):
        # The message below shows the cell.
        with suppress(UserError):
            listed = parse_json(cell, "", "")
    known = isinstance(listed, list) and (
        all(isinstance(item, str) for item in listed)
        or all(isinstance(item, int) and not isinstance(item, bool) for item in listed)
    )
    if not known:
        raise UserError(
            f"{table.place(row)}: the labels ({column!r}) are {shown([cell])}; {advice}, or names with {separator!r} "
            "between them"
        )
    if len(set(listed)) < len(listed) and not isinstance(listed[0], str):
        raise UserError(
            f"{table.place(row)}: the labels ({column!r}) are {shown([cell])}, with an id twice; list the ids of the "
            "row's classes, or write 0 and 1 in a column for each class (label_columns)"
        )
    return [str(item).strip() for item in listed]


def _warn_of_separator(table: Table, column: str, separator: str) -> None:
    """Warns if no text has the separator, and one has another sign that often stands between names."""
    texts = [(row, cell) for row, cell in enumerate(table.column(column)) if isinstance(cell, str)]
    if any(separator in cell or cell.lstrip().startswith("[") for _, cell in texts):
        return
    found = next(((row, cell, sign) for row, cell in texts for sign in ",;|" if sign in cell), None)
    if found is not None:
        row, cell, sign = found
        log.warning(
            "%s: the label %s is one name, because no row has the label_separator %r; set it to %r to get several",
            table.place(row),
            shown([cell]),
            separator,
            sign,
        )


def _encode_numbers(tables: Sequence[Table], columns: Sequence[str], names: Sequence[str] | None) -> EncodedLabels:
    """The numbers of each row: one a column, or those in the lists of one column."""
    # The names that the Hub has for ids aren't the numbers'.
    del names
    first = tables[0].rows[0][tables[0].columns.index(columns[0])]
    if len(columns) > 1 or not isinstance(first, list):
        encoded = [_by_row(table, columns, _number) for table in tables]
        found = list(columns)
    else:
        read = partial(_numbers, count=len(first))
        encoded = [[numbers for (numbers,) in _by_row(table, columns, read)] for table in tables]
        found = [f"{columns[0]}_{place}" for place in range(1, len(first) + 1)]
    if all(numbers == encoded[0][0] for numbers in encoded[0]):
        raise UserError(
            f"{tables[0].origin} has the same target in all rows ({shown(encoded[0][0])}) under {shown(columns)}; "
            "give rows that differ"
        )
    return _encoded(encoded, found)


NUMBERS = LabelKind(NUMBER_COLUMNS, _encode_numbers)


def _number(table: Table, row: int, column: str, cell: Any, leave_out: str = f", {LEAVE_OUT}") -> float:
    written = cell.strip() if isinstance(cell, str) else str(cell)
    value = float(written) if json_kind(cell) in ("number", "text") and DECIMAL.fullmatch(written) else math.nan
    if not abs(value) <= _LARGEST:
        empty = cell is None or written == ""
        what = "is empty" if empty else f"is {shown([cell])}, no finite number"
        fix = "write a decimal number, such as 3.8" + (leave_out if empty else "")
        raise UserError(f"{table.place(row)}: the target ({column!r}) {what}; {fix}")
    return value


def _numbers(table: Table, row: int, column: str, cell: Any, count: int) -> list[float]:
    if not isinstance(cell, list) or len(cell) != count or not count:
        raise UserError(
            f"{table.place(row)}: the targets ({column!r}) are {shown([cell])}; write a list of {max(1, count)} "
            "numbers, as many as in the first row"
        )
    # A row with a gap in its list isn't left out.
    return [_number(table, row, column, item, "") for item in cell]


def _encoded(parts: Sequence[list[Any]], names: Sequence[str]) -> EncodedLabels:
    return EncodedLabels(parts[0], parts[1] if len(parts) > 1 else [], list(names))


def _by_row(table: Table, columns: Sequence[str], read: Callable[[Table, int, str, Any], Any]) -> list[list[Any]]:
    """What `read` makes of the cells under `columns`, row by row.

    Raises:
        UserError: A column has JSON values of several kinds.
    """
    found = []
    for column in columns:
        cells = table.column(column)
        kind = json_kind(cells[0])
        values = []
        for row, cell in enumerate(cells):
            # First, because it says more about an empty cell.
            values.append(read(table, row, column, cell))
            if json_kind(cell) != kind:
                raise UserError(
                    f"{table.place(row)}: {column!r} is a JSON {json_kind(cell)} here and a {kind} before; write all "
                    "rows in one way"
                )
        found.append(values)
    return [list(row) for row in zip(*found, strict=True)]
