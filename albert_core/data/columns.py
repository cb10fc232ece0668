"""Finds the columns of text and label, and the files or splits for evaluation, by the same rules for all sources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from ... import UserError
from .tabular import Table, shown

TEXT_COLUMNS = (
    "text",
    "sentence",
    "utterance",
    "query",
    "review",
    "content",
    "comment",
    "message",
    "tweet",
    "document",
    "review_text",
    "review_body",
    "comment_text",
    "question",
    "headline",
)
PAIRED_COLUMNS = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("text", "text_pair"),
    ("sentence_a", "sentence_b"),
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("question", "passage"),
)
LABEL_COLUMNS = (
    "label",
    "category",
    "intent",
    "label_text",
    "response",
    "labels",
    "class",
    "target",
    "gold_label",
    "sentiment",
    "emotion",
    "topic",
    "stars",
    "rating",
    "score",
    "is_duplicate",
)
LABEL_NAME_COLUMN = "label_text"
ID_COLUMNS = ("id", "idx")
VALIDATION_SPLITS = ("validation", "valid", "val", "dev")
EVALUATION_SPLITS = ("test", *VALIDATION_SPLITS)


def evaluation_names(wanted: str | None) -> tuple[str, ...]:
    """Possible names of the evaluation split. `wanted` is "test", "validation", or None for either."""
    return {None: EVALUATION_SPLITS, "test": ("test",), "validation": VALIDATION_SPLITS}[wanted]


@dataclass(frozen=True)
class Columns:
    """Column names of a table.

    `text_pair` is the column of the second text if rows are pairs. `label_names` is the column that spells out ids, if
    any.
    """

    text: str
    text_pair: str | None
    labels: tuple[str, ...]
    label_names: str | None

    @property
    def texts(self) -> tuple[str, ...]:
        """One column, or two."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)

    def remark(self, origin: str) -> str:
        """What the log says of the columns of `origin`."""
        texts = "the text is" if self.text_pair is None else "the texts are"
        labels = "the label is" if len(self.labels) == 1 else "the labels are"
        return f"{origin}: {texts} under {shown(self.texts)}, {labels} under {shown(self.labels)}"


def choose_columns(
    origin: str,
    found: Sequence[str],
    text_column: str | None,
    label_column: str | None,
    text_pair_column: str | None = None,
    label_columns: Sequence[str] = (),
    usual_labels: Sequence[str] = LABEL_COLUMNS,
) -> Columns:
    """The requested columns, else the first of the usual names that exists (in any letter case).

    With `label_columns`, there are several of them instead of `label_column`.

    Raises:
        UserError: A column is missing, or two would be the same. The message names the columns found.
    """
    text, text_pair = choose_text_columns(origin, found, text_column, text_pair_column)
    asked: Sequence[str | None] = label_columns or [label_column]
    labels = tuple(_choose(origin, found, name, "label", usual_labels) for name in asked)
    for key, column in (("text_column", text), ("text_pair_column", text_pair)):
        if column in labels:
            raise UserError(f"{key} and label_column are both {column!r}; name two different columns of {shown(found)}")
    # Names are taken from a column beside the ids only if the label column was not chosen by the user.
    spelled_out = next((name for name in found if name.lower() == LABEL_NAME_COLUMN), None)
    if asked != [None] or spelled_out in (text, text_pair, *labels):
        spelled_out = None
    return Columns(text, text_pair, labels, spelled_out)


class IdsSeen:
    """The ids of a table that is read in parts, to detect repeated ones.

    Ids are the cells of columns called id or idx (in any letter case), unless the column is `used` for something else.
    1 and "1" are the same id. An empty cell is no id.
    """

    def __init__(self, used: Iterable[str | None] = ()) -> None:
        self._used = set(used)
        # A digest instead of the id, because an id may be any text, and there may be many.
        self._first: dict[tuple[str, bytes], int] = {}

    def add(self, table: Table) -> None:
        """Adds the ids of a part. Raises UserError for a repeated id, naming it and both rows."""
        for column in table.columns:
            if column.lower() not in ID_COLUMNS or column in self._used:
                continue
            for row, cell in enumerate(table.column(column)):
                if cell in (None, ""):
                    continue
                position = table.positions[row]
                key = column, blake2b(str(cell).encode(), digest_size=16).digest()
                first = self._first.setdefault(key, position)
                if first != position:
                    fix = (
                        "give each question an id of its own"
                        if table.unit == "question"
                        else f"give each row one of its own, or call column {column!r} something else where it holds "
                        "no ids"
                    )
                    raise UserError(
                        f"{table.place(row)}: {column} {str(cell)!r} occurs twice, first at {table.at(first)}; {fix}"
                    )


def choose_text_columns(
    origin: str, found: Sequence[str], text_column: str | None, text_pair_column: str | None = None
) -> tuple[str, str | None]:
    """The requested columns of the text and, if rows are pairs, of the second text; else the usual ones.

    A requested text column is used alone unless the second one is requested too.
    """
    if text_column is None and (pair := _usual_pair(found, text_pair_column)) is not None:
        return pair
    text = _choose(origin, found, text_column, "text", TEXT_COLUMNS)
    if text_pair_column is None:
        return text, None
    text_pair = _choose(origin, found, text_pair_column, "text_pair", ())
    if text_pair == text:
        raise UserError(f"text_column and text_pair_column are both {text!r}; name two columns of {shown(found)}")
    return text, text_pair


def choose_text_column(origin: str, found: Sequence[str], text_column: str | None) -> str:
    """The text column by the same rule, for tables without pairs."""
    return _choose(origin, found, text_column, "text", TEXT_COLUMNS)


def _usual_pair(found: Sequence[str], text_pair_column: str | None) -> tuple[str, str] | None:
    """The first two columns with the usual names of a pair, in any letter case; with the second given, its pair."""
    by_name = {column.lower(): column for column in reversed(found)}
    for first, second in PAIRED_COLUMNS:
        if first in by_name and second in by_name and text_pair_column in (None, by_name[second]):
            return by_name[first], by_name[second]
    return None


def _choose(origin: str, found: Sequence[str], asked: str | None, role: str, usual: Sequence[str]) -> str:
    delimited = any(suffix in origin.lower() for suffix in (".csv", ".tsv"))
    first_line = " (the first line of a CSV file must name the columns)" if delimited else ""
    if asked is not None:
        if asked in found:
            return asked
        raise UserError(
            f"{origin} has no column {asked!r}, it has {shown(found)}; set {role}_column to one of them{first_line}"
        )
    for name in usual:
        match = next((column for column in found if column.lower() == name), None)
        if match is not None:
            return match
    raise UserError(
        f"{origin} has no {role} column ({', '.join(usual[:5])} and others), it has {shown(found)}; set {role}_column "
        f"to one of them{first_line}"
    )
