"""Questions on contexts by name: local files in SQuAD's formats, or the Hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ... import UserError
from .hub import ALIASES, HUB_ID, hub_splits, hub_table
from .local import FileKind, read_local
from .squad_file import QuestionSplit, read_question_table, split_of
from .tabular import Table

QUESTIONS = FileKind(
    (".json", ".json.gz", ".jsonl", ".jsonl.gz", ".parquet"),
    read_question_table,
    "or a Hub id such as rajpurkar/squad",
    versions=True,
)


@dataclass(frozen=True)
class QuestionDataset:
    """The two splits of a data set.

    `text_columns` are the names of the columns of questions and contexts, `remarks` what was found by looking.
    """

    name: str
    train: QuestionSplit
    test: QuestionSplit
    text_columns: tuple[str, str]
    remarks: tuple[str, ...] = ()

    @property
    def meaning(self) -> list[str]:
        """What the head's outputs stand for: the ends of an answer, for all data."""
        return ["start", "end"]


def load_questions(
    dataset_id: str,
    *,
    question_column: str | None = None,
    context_column: str | None = None,
    answers_column: str | None = None,
    evaluation_split: str | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    unanswerable: bool = False,
) -> QuestionDataset:
    """Loads the questions that `dataset_id` names, in the format of SQuAD v1.1, or 2.0 if they may be `unanswerable`.

    - A folder with files named ``train...`` and ``test...`` (or ``validation``, ``valid``, ``val``, ``dev``):
      SQuAD's own .json, or the Hub's columns in .jsonl, .json or .parquet (text also as .gz); or saved by `datasets`.
    - One such file with `test_fraction`. That share of the contexts, chosen by `seed`, is the test split.
    - A Hub id such as ``rajpurkar/squad``, with columns id, question, context and answers.

    Raises:
        UserError: An unknown name, or data that can't be used (see `split_of`).
    """
    path = QUESTIONS.local_path(dataset_id)
    name = dataset_id if path is not None else ALIASES.get(dataset_id, dataset_id)
    if path is not None and not QUESTIONS.is_saved(path):
        train_table, test_table = read_local(dataset_id, path, evaluation_split, QUESTIONS)
    elif path is not None or HUB_ID.fullmatch(name):
        train_table, test_table = _read_hub(name, evaluation_split, path)
    else:
        raise UserError(
            f"dataset_id {dataset_id!r} is neither an existing path nor a Hub id; allowed are a file or folder in "
            "SQuAD's format, or a Hub id such as rajpurkar/squad"
        )
    if (test_table is None) == (test_fraction is None):
        raise UserError(
            f"{name} has no test split; set test_fraction (0.2 holds out a fifth of the contexts), or give both splits"
            if test_table is None
            else f"test_fraction is set, but {name} has an evaluation split ({test_table.origin}); drop test_fraction"
        )
    columns = (question_column or "question", context_column or "context")
    read = partial(
        split_of,
        question_column=columns[0],
        context_column=columns[1],
        answers_column=answers_column or "answers",
        unanswerable=unanswerable,
    )
    train = read(train_table)
    if not any(train.answers):
        raise UserError(f"{train_table.origin} has no question with an answer; give rows of both kinds")
    if test_table is not None:
        return QuestionDataset(name, train, read(test_table), columns, train_table.remarks)
    assert test_fraction is not None, "checked above"
    held_out = _contexts_held_out(train, test_fraction, seed)
    rows = range(len(train))
    return QuestionDataset(
        name,
        train.rows([row for row in rows if train.contexts[row] not in held_out]),
        train.rows([row for row in rows if train.contexts[row] in held_out]),
        columns,
        train_table.remarks,
    )


def _read_hub(name: str, evaluation_split: str | None, folder: Path | None) -> tuple[Table, Table | None]:
    splits = hub_splits(name, evaluation_split, folder)
    tables = [hub_table(f"{name} ({split})", rows, list(rows.column_names)) for split, rows in splits.items()]
    return tables[0], tables[1] if len(tables) > 1 else None


def _contexts_held_out(split: QuestionSplit, fraction: float, seed: int) -> set[str]:
    """The contexts of the test part. Whole contexts, because a question on a trained context is no test."""
    contexts = list(dict.fromkeys(split.contexts))
    count = min(round(fraction * len(contexts)), len(contexts) - 1)
    if not count:
        raise UserError(
            f"test_fraction {fraction} of {len(contexts)} contexts leaves none for the test; set a larger share, or "
            "give more contexts"
        )
    return set(sorted(contexts, key=lambda context: hashlib.sha256(f"{seed}:{context}".encode()).digest())[:count])
