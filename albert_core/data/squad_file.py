"""Questions on contexts from files: SQuAD's nested JSON as a table, and checks of a table's rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import UserError
from .columns import IdsSeen
from .table_files import json_form, read_json_values, read_table, table_parts
from .tabular import PART_ROWS, Table, shown
from .unpacked import suffix_of

COLUMNS = ["id", "title", "context", "question", "answers"]
# SQuAD 2.0's mark of questions without an answer.
IMPOSSIBLE = "is_impossible"


@dataclass(frozen=True)
class Answer:
    """A span of a context: ``context[start:start + len(text)] == text``."""

    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclass(frozen=True)
class QuestionSplit:
    """Questions, each with its id, its context and the given answers (none when predicting).

    `origin` is the split's name in messages, such as a file name.
    """

    origin: str
    ids: list[str]
    questions: list[str]
    contexts: list[str]
    answers: list[tuple[Answer, ...]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def corpus(self) -> list[str]:
        """Every text once: the questions, and the contexts that several questions may share."""
        return [*self.questions, *dict.fromkeys(self.contexts)]

    @property
    def content(self) -> list[Any]:
        """What an evaluation depends on, as JSON values."""
        answers = [[(answer.text, answer.start) for answer in given] for given in self.answers]
        return [self.questions, self.contexts, answers]

    @property
    def example(self) -> tuple[str, ...]:
        """The question with the shortest context, and that context, for trying out a trained model."""
        row = min(range(len(self)), key=lambda row: len(self.contexts[row]))
        return self.questions[row], self.contexts[row]

    def rows(self, indices: Sequence[int]) -> QuestionSplit:
        """Some of the questions, in the order of `indices`."""
        return QuestionSplit(
            self.origin,
            [self.ids[row] for row in indices],
            [self.questions[row] for row in indices],
            [self.contexts[row] for row in indices],
            [self.answers[row] for row in indices],
        )


def question_parts(path: Path) -> Iterator[Table]:
    """Reads the file at `path` as `read_question_table` does, some rows at a time. SQuAD's JSON is read as a whole."""
    if not _is_nested(path):
        yield from table_parts(path)
        return
    table = read_question_table(path)
    for start in range(0, len(table.rows), PART_ROWS):
        part = slice(start, start + PART_ROWS)
        yield Table(table.origin, table.columns, table.rows[part], table.positions[part], table.unit)


def read_question_table(path: Path) -> Table:
    """Reads the file at `path` as a table: SQuAD's JSON (.json, .json.gz) with one row per question, others by
    `read_table`.

    A row of SQuAD's JSON has id, title, context, question and answers, the last as on the Hub: ``{"text": [...],
    "answer_start": [...]}``, and for SQuAD 2.0 is_impossible. Raises UserError for a file that can't be read or has
    another structure.
    """
    if not _is_nested(path):
        return read_table(path)
    rows = list(_questions(path, read_json_values(path, "give SQuAD's JSON, a list of objects, or one object a line")))
    if not rows:
        raise UserError(f"{path} has no questions; give a file with at least one")
    columns = [*COLUMNS, IMPOSSIBLE]
    if all(row[-1] is None for row in rows):
        columns, rows = COLUMNS, [row[:-1] for row in rows]
    return Table(str(path), columns, rows, range(1, len(rows) + 1), "question")


def _is_nested(path: Path) -> bool:
    return suffix_of(path) == ".json" and json_form(path) == "object"


def split_of(
    table: Table,
    question_column: str = "question",
    context_column: str = "context",
    answers_column: str = "answers",
    unanswerable: bool = False,
) -> QuestionSplit:
    """The checked rows of a table with answers.

    Args:
        unanswerable: Whether questions may have no answer.

    Raises:
        UserError: Columns are missing, a question or context is empty, an id occurs twice, an answer isn't where
            `answer_start` says, a question has no answer although each needs one, or is_impossible says otherwise than
            the answers. The message names the row.
    """
    wanted = ("id", question_column, context_column, answers_column)
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise UserError(
            f"{table.origin} lacks the columns {shown(missing)}, it has {shown(table.columns)}; name question, context "
            "and answers by text_column, text_pair_column and label_column"
        )
    ids, questions, contexts, answers = (table.column(name) for name in wanted)
    for row, name in enumerate(ids):
        if not isinstance(name, str) or not name:
            raise UserError(f"{table.place(row)}: the id is {shown([name])}; give each question a string of its own")
    IdsSeen(wanted[1:]).add(table)
    checked = []
    for row, name in enumerate(ids):
        for role, text in (("question", questions[row]), ("context", contexts[row])):
            if not isinstance(text, str) or not text.strip():
                raise UserError(
                    f"{table.place(row)} ({name}): the {role} is {shown([text])}, and a text is needed; fill it in or "
                    "remove the question"
                )
        place = f"{table.place(row)} ({name})"
        checked.append(_answers(place, contexts[row], answers[row], unanswerable))
        if unanswerable and IMPOSSIBLE in table.columns:
            _check_impossible(place, table.rows[row][table.columns.index(IMPOSSIBLE)], bool(checked[-1]))
    return QuestionSplit(table.origin, ids, questions, contexts, checked)


def _check_impossible(place: str, cell: Any, answered: bool) -> None:
    if cell is not None and cell is not (not answered):
        raise UserError(
            f"{place}: {IMPOSSIBLE} is {shown([cell])}, and the question has {'an' if answered else 'no'} answer; "
            f"write {str(not answered).lower()}, or correct the answers"
        )


def _answers(place: str, context: str, cell: Any, unanswerable: bool) -> tuple[Answer, ...]:
    """The answers in one cell, each checked against its position in the context."""
    texts, starts = (cell.get("text"), cell.get("answer_start")) if isinstance(cell, dict) else (None, None)
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise UserError(
            f'{place}: the answers are {shown([cell])}; write {{"text": [...], "answer_start": [...]}}, both as '
            "long, in a .json or .jsonl file"
        )
    if not texts and not unanswerable:
        raise UserError(
            f"{place} has no answer; each needs one at least: set task: question_answering_v2, which has questions "
            "without an answer as in SQuAD 2.0, or remove the question"
        )
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{place}: an answer is {shown([text])}; give its text, or remove the answer")
        if not isinstance(start, int) or isinstance(start, bool):
            raise UserError(f"{place}: answer_start is {shown([start])}; write a whole number of characters, from 0")
        if not 0 <= start <= len(context) - len(text):
            raise UserError(
                f"{place}: answer {shown([text])} at answer_start {start} lies outside the context of {len(context)} "
                "characters; correct answer_start, which counts characters from 0"
            )
        if context[start : start + len(text)] != text:
            there = context[start : start + len(text)]
            raise UserError(
                f"{place}: at answer_start {start} of the context stands {shown([there])}, not the answer "
                f"{shown([text])}; correct answer_start, which counts characters from 0"
            )
    return tuple(Answer(text, start) for text, start in zip(texts, starts, strict=True))


def _questions(path: Path, root: Any) -> Iterator[list[Any]]:
    """One row per question, in the file's order."""
    for article_number, article in _listed(path, "the file", root, "data"):
        title = article.get("title", "")
        for number, paragraph in _listed(path, f"article {article_number}", article, "paragraphs"):
            where = f"article {article_number}, paragraph {number}"
            for _, question in _listed(path, where, paragraph, "qas"):
                answers = [
                    (answer.get("text"), answer.get("answer_start"))
                    for _, answer in _listed(path, f"{where}, question {question.get('id')!r}", question, "answers", ())
                ]
                cell = {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]}
                text = question.get("question")
                yield [question.get("id"), title, paragraph.get("context"), text, cell, question.get(IMPOSSIBLE)]


def _listed(path: Path, where: str, holder: Any, key: str, default: Any = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects that `holder` lists under `key`, counted from 1."""
    items = holder.get(key, default) if isinstance(holder, dict) else None
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, dict) for item in items):
        raise UserError(
            f'{path} is not built as SQuAD is: {where} has no list of objects "{key}"; wanted is data > paragraphs '
            "(context) > qas (id, question, answers)"
        )
    yield from enumerate(items, start=1)
