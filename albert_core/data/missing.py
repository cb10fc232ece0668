"""Rows without a label or a text: reported, or left out if so configured."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ... import UserError
from ...kernels.words import count
from .tabular import Table, shown

log = logging.getLogger("isotrain")

# What a message about a missing label or text ends with.
LEAVE_OUT = "or leave such rows out by drop_missing: true"


def without_missing(
    table: Table,
    labels: Sequence[str],
    texts: Sequence[str],
    markers: Sequence[str],
    drop: bool,
    classes: Sequence[str] = (),
    empty_is_label: bool = False,
    of_numbers: bool = False,
) -> Table:
    """`table` without the rows that lack a label or a text, if `drop` is set.

    Args:
        table: Rows of texts and labels.
        labels: The columns of the labels.
        texts: The columns of the texts.
        markers: Labels that mean there is none, in any letter case.
        drop: Whether to leave out such rows and empty texts. The log says how many.
        classes: Names that are known to be classes, whatever they look like.
        empty_is_label: Whether an empty text isn't a missing label.
        of_numbers: Whether labels are numbers, so that no marker can be a class.

    Raises:
        UserError: A label is a marker (the message names the row) and `drop` is false, or no row is left.
    """
    known = {marker.casefold() for marker in markers} - {name.strip().casefold() for name in classes}
    cells = [(row, cell) for column in labels for row, cell in enumerate(table.column(column))]
    marked = {row: cell for row, cell in cells if _is_marker(cell, known)}
    if not drop:
        if marked:
            first = min(marked)
            more = f" (and {count(len(marked) - 1, 'more row')})" if len(marked) > 1 else ""
            a_class = "" if of_numbers else ", or make it a class by missing_markers: []"
            raise UserError(
                f"{table.place(first)}{more}: the label {shown([marked[first]])} says that there is none; correct it, "
                f"{LEAVE_OUT}{a_class}"
            )
        _warn_of_texts(table, texts, known)
        return table
    lacking = {row for column in texts for row, cell in enumerate(table.column(column)) if _is_empty(cell)}
    lacking |= marked.keys() | {row for row, cell in cells if _is_empty(cell) and (cell is None or not empty_is_label)}
    kept = [row for row in range(len(table.rows)) if row not in lacking]
    if not kept:
        raise UserError(f"{table.origin} has no row with a text and a label; give a file that has, or another column")
    if lacking:
        log.warning(
            "%s: left out of its %s: %d without a label or a text (the first is %s)",
            table.origin,
            count(len(table.rows), "row"),
            len(lacking),
            table.at(table.positions[min(lacking)]),
        )
    smaller = replace(table, rows=[table.rows[row] for row in kept], positions=[table.positions[row] for row in kept])
    _warn_of_texts(smaller, texts, known)
    return smaller


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _is_marker(cell: Any, known: set[str]) -> bool:
    if isinstance(cell, float) and cell != cell:
        return True
    return isinstance(cell, str) and cell.strip().casefold() in known


def _warn_of_texts(table: Table, texts: Sequence[str], known: set[str]) -> None:
    """Warns of texts that are markers. They are trained on, since a text may really be that word."""
    for column in texts:
        cells = table.column(column)
        rows = [row for row, cell in enumerate(cells) if _is_marker(cell, known)]
        if rows:
            log.warning(
                "%s, as a text: %s (%s in all) is what programs write for a missing value; it is trained on",
                table.place(rows[0]),
                shown([cells[rows[0]]]),
                count(len(rows), "row"),
            )
