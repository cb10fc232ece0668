"""Which columns hold text and label, and which files or splits are for evaluation: one rule for every source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ... import UserError
from .tabular import shown

TEXT_COLUMNS = ("text", "sentence", "utterance", "query")
LABEL_COLUMNS = ("label", "category", "intent", "label_text")
LABEL_NAME_COLUMN = "label_text"
EVALUATION_SPLITS = ("test", "validation", "valid", "val", "dev")


@dataclass(frozen=True)
class Columns:
    """Column names of a table; `label_names` is the column that spells out ids, where there is one."""

    text: str
    label: str
    label_names: str | None


def choose_columns(origin: str, found: Sequence[str], text_column: str | None, label_column: str | None) -> Columns:
    """The columns asked for, else the first of the usual names that is there (in any letter case).

    Raises UserError naming the columns found when one is missing, or when text and label would be the same.
    """
    text = _choose(origin, found, text_column, "text", TEXT_COLUMNS)
    label = _choose(origin, found, label_column, "label", LABEL_COLUMNS)
    if text == label:
        raise UserError(f"text_column and label_column are both {text!r}; name two different columns of {shown(found)}")
    # Names beside ids: only where the label column was not chosen by hand, so that a hand-picked one stands alone.
    spelled_out = next((name for name in found if name.lower() == LABEL_NAME_COLUMN), None)
    if label_column is not None or spelled_out in (text, label):
        spelled_out = None
    return Columns(text, label, spelled_out)


def choose_text_column(origin: str, found: Sequence[str], text_column: str | None) -> str:
    """The text column alone, by the same rule: for tables that have no labels yet."""
    return _choose(origin, found, text_column, "text", TEXT_COLUMNS)


def _choose(origin: str, found: Sequence[str], asked: str | None, role: str, usual: Sequence[str]) -> str:
    if asked is not None:
        if asked in found:
            return asked
        raise UserError(
            f"{origin} has no column {asked!r}, it has {shown(found)}; set {role}_column to one of them "
            "(the first line of a CSV file must name the columns)"
        )
    for name in usual:
        match = next((column for column in found if column.lower() == name), None)
        if match is not None:
            return match
    raise UserError(
        f"{origin} has no {role} column ({', '.join(usual)}), it has {shown(found)}; set {role}_column to one of them "
        "(the first line of a CSV file must name the columns)"
    )
