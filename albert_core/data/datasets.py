"""Labelled texts by name: embedded, from local files, or from the Hub."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ... import UserError
from ...kernels.words import count
from ..config.keys import MISSING_MARKERS
from .columns import Columns, IdsSeen, choose_columns
from .embedded import embedded_tables
from .hub import ALIASES, HUB_ID, read_hub
from .intents import EMBEDDED_PREFIX, parse_embedded_id
from .label_kinds import CLASSES, NUMBERS, LabelKind
from .labels import names_from_column, read_categories
from .local import LABELLED_TEXTS, read_local
from .missing import LEAVE_OUT, without_missing
from .responses import RESPONSES, originals_by_class, with_normalised_labels
from .tabular import Table, shown

log = logging.getLogger("isotrain")

CATEGORIES_FILE = "categories.json"


@dataclass(frozen=True)
class RawSplit:
    """Texts as they were written, their labels, and second texts if rows are pairs of texts.

    A label is a class id (from 0), or a list with a number for each output of the head.
    """

    texts: list[str]
    labels: list[Any]
    pairs: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def corpus(self) -> list[str]:
        """All texts, first and second ones."""
        return self.texts if self.pairs is None else [*self.texts, *self.pairs]

    @property
    def content(self) -> list[Any]:
        """What an evaluation depends on, as JSON values."""
        return [self.texts, self.labels, self.pairs]

    @property
    def example(self) -> tuple[str, ...]:
        """A text, or both texts of a pair, for trying out a trained model."""
        row = example_row(self.texts)
        return (self.texts[row],) if self.pairs is None else (self.texts[row], self.pairs[row])

    def rows(self, indices: Sequence[int]) -> RawSplit:
        """Some of the rows, in the order of `indices`."""
        pairs = None if self.pairs is None else [self.pairs[row] for row in indices]
        return RawSplit([self.texts[row] for row in indices], [self.labels[row] for row in indices], pairs)


def example_row(texts: Sequence[str]) -> int:
    """The row with the best text for a command line: one printable line of about 40 characters, not like an option."""

    def unfit(row: int) -> tuple[bool, int]:
        text = texts[row]
        return text.startswith("-") or not text.isprintable(), abs(len(text) - 40)

    return min(range(len(texts)), key=unfit)


@dataclass(frozen=True)
class RawDataset:
    """The two splits of a data set.

    Attributes:
        label_names: The name of each class, by id, or of each number in a label.
        fingerprint: SHA-256 of the content.
        text_columns: The names of the columns of the text, or of both texts of a pair.
        responses: The most frequent original in a class's training rows, by id, if labels are texts that rules made
            alike.
        remarks: What was found by looking at the data, a line each, for the log.
    """

    name: str
    train: RawSplit
    test: RawSplit
    label_names: list[str]
    fingerprint: str
    text_columns: tuple[str, ...] = ("text",)
    responses: list[str] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def meaning(self) -> list[Any]:
        """What the head's outputs stand for, in order."""
        return [self.label_names, self.responses]


def load_dataset(
    dataset_id: str,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    label_columns: Sequence[str] = (),
    label_kind: LabelKind = CLASSES,
    evaluation_split: str | None = None,
    label_rules: Sequence[str] = (),
    label_names: Sequence[str] | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    missing_markers: Sequence[str] = MISSING_MARKERS,
    drop_missing: bool = False,
) -> RawDataset:
    """Loads the data set that `dataset_id` names.

    - ``embedded:intents``, optionally with sizes: ``embedded:intents?train=2000&test=500`` (see `intents`).
      ``embedded:responses`` has a whole answer instead of each label, ``embedded:topics`` several labels a text, and
      ``embedded:similarity`` scores pairs of texts.
    - A folder with ``train`` and ``test`` (or ``validation``, ``valid``, ``val``, ``dev``) as .csv, .tsv or .jsonl, or
      in several files as the Hub names them (see `read_local`). A ``categories.json`` in it gives the order of the
      label names.
    - One .csv, .tsv or .jsonl file with `test_fraction`. That share of each label, chosen by `seed`, is the test split.
    - A Hub id: ``org/name``, ``name`` or, with a configuration, ``org/name/configuration`` (also ``glue/mrpc``). Names
      that exist on disk or begin with ``.``, ``/`` or ``~`` are local.

    Rows are pairs of texts if `text_pair_column` is given or the columns have the usual names of pairs (``sentence1``,
    ``sentence2``). `evaluation_split` chooses "test" or "validation" if there are both.

    Texts are kept byte for byte. Labels are names or whole numbers, unless `label_kind` says otherwise. `label_names`
    gives the order of the names (else ``categories.json``, a ``ClassLabel`` column, a ``label_text`` column beside ids,
    else sorted). With `label_rules` (see `normalise`), labels are texts, and those that become equal are one class.

    A label in `missing_markers` counts as missing. With `drop_missing`, rows without a label or a text are left out.

    Raises:
        UserError: An unknown name, or data that can't be used: columns not found, empty texts, an id that occurs twice
            in a split, labels that are no classes or unseen in training, no test split.
    """
    if dataset_id.startswith(EMBEDDED_PREFIX):
        for key, value in (
            ("text_column", text_column),
            ("text_pair_column", text_pair_column),
            ("label_column", label_column),
            ("label_columns", label_columns or None),
            ("label_names", label_names),
            ("evaluation_split", evaluation_split),
            ("test_fraction", test_fraction),
        ):
            if value is not None:
                raise UserError(f"{key} is set, but {dataset_id} has no files and a test split of its own; drop {key}")
        return _embedded(dataset_id, label_rules, label_kind)
    check_dataset_name(dataset_id)
    asked = partial(
        choose_columns,
        text_column=text_column,
        label_column=label_column,
        text_pair_column=text_pair_column,
        label_columns=label_columns,
        usual_labels=label_kind.usual,
    )
    path = LABELLED_TEXTS.local_path(dataset_id)
    name = dataset_id if path is not None else ALIASES.get(dataset_id, dataset_id)
    if path is None or LABELLED_TEXTS.is_saved(path):
        train, test = read_hub(name, asked, evaluation_split, path)
    else:
        train, test = read_local(dataset_id, path, evaluation_split, LABELLED_TEXTS)
    if label_names is None and path is not None and (path / CATEGORIES_FILE).is_file():
        label_names = read_categories(path / CATEGORIES_FILE)
    missing = partial(
        without_missing,
        markers=missing_markers,
        drop=drop_missing,
        empty_is_label=label_kind.empty_is_label,
        of_numbers=label_kind is NUMBERS,
    )
    return _assemble(name, train, test, label_names, asked, test_fraction, seed, label_rules, missing, label_kind)


def check_dataset_name(dataset_id: str) -> None:
    """Raises UserError if no data set of labelled texts can have this name. Loads nothing."""
    if dataset_id.startswith(EMBEDDED_PREFIX):
        parse_embedded_id(dataset_id)
    elif path := LABELLED_TEXTS.local_path(dataset_id):
        LABELLED_TEXTS.check_there(dataset_id, path)
    elif not HUB_ID.fullmatch(ALIASES.get(dataset_id, dataset_id)):
        raise UserError(
            f"dataset_id {dataset_id!r} is neither an existing path nor a Hub id; allowed are embedded:intents, a file "
            "or folder, or a Hub id such as mteb/banking77"
        )


def fingerprint_of(train: RawSplit, test: RawSplit, label_names: Sequence[str]) -> str:
    """SHA-256 (hex) of texts, labels and label names, in order."""
    encoded = json.dumps(["isotrain data 1", [train.content, test.content], list(label_names)], ensure_ascii=False)
    return hashlib.sha256(encoded.encode()).hexdigest()


def stratified_split(labels: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers of the training and the test part, each in row order.

    Each label gives ``round(fraction * rows)`` rows to the test part and keeps at least one for training. A hash of
    (seed, row) chooses them, the same on every machine and version. Raises UserError if the test part would be empty.
    """
    rows_of: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        rows_of.setdefault(label, []).append(row)
    test: list[int] = []
    for rows in rows_of.values():
        held = min(round(fraction * len(rows)), len(rows) - 1)
        test.extend(sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{row}".encode()).digest())[:held])
    if not test:
        raise UserError(
            f"test_fraction {fraction} of {count(len(labels), 'row')} leaves no label a test row; "
            "set a larger share, or give more rows"
        )
    held_out = set(test)
    return [row for row in range(len(labels)) if row not in held_out], sorted(test)


def _embedded(dataset_id: str, label_rules: Sequence[str], kind: LabelKind) -> RawDataset:
    if label_rules and not dataset_id.startswith(RESPONSES):
        raise UserError(f"label_rules are set, but the labels of {dataset_id} are no texts; drop label_rules")
    train, test, names = embedded_tables(dataset_id)
    asked = partial(choose_columns, text_column=None, label_column=None, usual_labels=(train.columns[-1],))
    return _assemble(dataset_id, train, test, names, asked, None, 0, label_rules, None, kind)


def _assemble(
    name: str,
    train: Table,
    test: Table | None,
    label_names: Sequence[str] | None,
    choose: Callable[[str, Sequence[str]], Columns],
    test_fraction: float | None,
    seed: int,
    label_rules: Sequence[str],
    missing: Callable[..., Table] | None,
    kind: LabelKind,
) -> RawDataset:
    if test is not None and test_fraction is not None:
        raise UserError(
            f"test_fraction is set, but {name} has a test split of its own ({test.origin}); drop test_fraction"
        )
    if test is None and test_fraction is None:
        raise UserError(
            f"{name} has no test split; set test_fraction (0.2 holds out a fifth of each label), or give a folder with "
            "train and test files"
        )
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise UserError(f"test_fraction is {test_fraction}; allowed is a share between 0 and 1, such as 0.2")
    try:
        columns = choose(train.origin, train.columns)
    except UserError as error:
        # What was found by looking may be why: another separator, or a column that was left out.
        raise UserError("; ".join([str(error), *train.remarks])) from error
    label_names = label_names or train.class_names.get(columns.labels[0])
    tables = [train] if test is None else [train, test]
    found = columns.remark(train.origin)
    for table in tables[1:]:
        lacking = [name for name in (*columns.texts, *columns.labels) if name not in table.columns]
        if lacking:
            raise UserError(
                f"{table.origin} has no column {shown(lacking)}, which {train.origin} has; it has "
                f"{shown(table.columns)}: give both the same names"
            )
    if missing is not None:
        tables = [missing(table, columns.labels, columns.texts, classes=label_names or ()) for table in tables]
    for table in tables:
        IdsSeen((*columns.texts, *columns.labels, columns.label_names)).add(table)
    label, beside = columns.labels[0], columns.label_names
    responses = [str(cell) for cell in tables[0].column(label)] if label_rules else []
    if label_rules:
        tables = [with_normalised_labels(table, label, label_rules) for table in tables]
    elif kind.of_classes and label_names is None and beside and all(beside in table.columns for table in tables):
        label_names = names_from_column(tables, label, beside)
        if label_names is not None:
            columns = replace(columns, labels=(beside,))
    for table in tables:
        if not table.rows:
            raise UserError(f"{table.origin} has no rows; give a split with at least one text and label")
    texts = [[_texts(table, column, columns) for column in columns.texts] for table in tables]
    labels = kind.encode(tables, columns.labels, label_names)
    names = labels.names
    absent = len(names) - len(set(labels.train)) if kind.of_classes else 0
    if absent:
        log.warning("%s: %s without a training row, of %d", name, count(absent, "label name"), len(names))
    train_split = _split(texts[0], labels.train)
    if test_fraction is None:
        test_split = _split(texts[1], labels.test)
    else:
        parts = stratified_split(labels.train if kind.of_classes else [0] * len(labels.train), test_fraction, seed)
        responses = [responses[row] for row in parts[0]] if label_rules else []
        train_split, test_split = (train_split.rows(part) for part in parts)
    fingerprint = fingerprint_of(train_split, test_split, names)
    originals = originals_by_class(responses, train_split.labels, len(names)) if label_rules else None
    remarks = tuple(filter(None, [*train.remarks, *(test.remarks if test else ()), found, labels.remark]))
    return RawDataset(name, train_split, test_split, names, fingerprint, columns.texts, originals, remarks)


def _split(texts: Sequence[list[str]], labels: list[Any]) -> RawSplit:
    return RawSplit(texts[0], labels, texts[1] if len(texts) > 1 else None)


def _texts(table: Table, column: str, columns: Columns) -> list[str]:
    texts = table.column(column)
    empty = [row for row, text in enumerate(texts) if text is None or (isinstance(text, str) and not text.strip())]
    if empty:
        what = "empty texts" if columns.text_pair is None else "unpaired sentences: empty texts"
        raise UserError(
            f"{table.origin} has {len(empty)} {what} under {column!r} ({table.listed(empty)}); remove these rows, "
            f"{LEAVE_OUT}"
        )
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(
                f"{table.place(row)}: the text ({column!r}) is {shown([text])} and no text; name another column by "
                "text_column, or put it in quotes"
            )
    return texts
