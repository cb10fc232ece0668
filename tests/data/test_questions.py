"""Questions on contexts: what is read from files and the Hub, and each defect named in one line."""

from __future__ import annotations

import copy
import gzip
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from isotrain import UserError
from isotrain.albert_core.data import unpacked
from isotrain.albert_core.data.questions import load_questions
from isotrain.albert_core.data.squad_file import Answer, read_question_table, split_of
from isotrain.albert_core.terminal.text import LONGEST_MESSAGE, brief, error_line
from support.data_files import DAMAGE, JSON, TYPED, write_rows
from support.small_questions import question, squad, write_questions

CONTEXT = "Anna lives in Rome. Rome is old."


def write(path: Path, value: Any) -> Path:
    data = json.dumps(value).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def one(**changes: Any) -> dict[str, Any]:
    """SQuAD's nesting around one question, changed."""
    return squad([(changes.pop("context", CONTEXT), [question(1, "Where?", CONTEXT, "Rome") | changes])])


def test_the_three_formats_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_questions(tmp_path / "plain")
    wanted = load_questions(str(folder))
    assert (len(wanted.train), len(wanted.test)) == (32, 12)
    first = wanted.train.answers[0][0]
    assert wanted.train.contexts[0][first.start : first.end] == first.text

    zipped, flat = tmp_path / "zipped", tmp_path / "flat"
    zipped.mkdir()
    flat.mkdir()
    columns: dict[str, dict[str, list[Any]]] = {}
    for split in ("train", "dev"):
        write(zipped / f"{split}-v1.1.json.gz", json.loads((folder / f"{split}.json").read_text()))
        (zipped / f"{split}-v1.1.offsets.tsv").write_text("id\tstatus\n")
        table = read_question_table(folder / f"{split}.json")
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        (flat / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        columns[split] = {name: table.column(name) for name in table.columns}
    hub = datasets.DatasetDict(
        train=datasets.Dataset.from_dict(columns["train"]), validation=datasets.Dataset.from_dict(columns["dev"])
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"rajpurkar/squad": hub}[name])
    for name in (str(zipped), str(flat), "squad", "rajpurkar/squad"):
        found = load_questions(name)
        for split in ("train", "test"):
            one_split, other = getattr(found, split), getattr(wanted, split)
            assert (one_split.ids, one_split.questions, one_split.contexts, one_split.answers) == (
                other.ids,
                other.questions,
                other.contexts,
                other.answers,
            )


def test_columns_of_other_names_are_read_by_name(tmp_path: Path) -> None:
    row = {"id": "x", "frage": "Wo?", "text": CONTEXT, "antworten": {"text": ["Rome"], "answer_start": [20]}}
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    found = load_questions(
        str(tmp_path), question_column="frage", context_column="text", answers_column="antworten"
    ).train
    assert (found.questions, found.contexts, found.answers) == (["Wo?"], [CONTEXT], [(Answer("Rome", 20),)])
    with pytest.raises(UserError, match="lacks the columns 'question', 'context', 'answers', it has 'id', 'frage'"):
        load_questions(str(tmp_path))


def test_one_file_is_split_by_contexts(tmp_path: Path) -> None:
    file = write_questions(tmp_path, train=20) / "train.json"
    found = load_questions(str(file), test_fraction=0.25, seed=3)
    assert not set(found.train.contexts) & set(found.test.contexts)
    assert (len(found.train), len(found.test)) == (30, 10)
    assert set(load_questions(str(file), test_fraction=0.25, seed=4).test.ids) != set(found.test.ids)
    with pytest.raises(UserError, match="set test_fraction"):
        load_questions(str(file))
    with pytest.raises(UserError, match="leaves none"):
        load_questions(str(file), test_fraction=0.01)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (one(context=" \n"), r"question 1 \(q1\): the context is ' \\n', and a text is needed"),
        (one(context=None), "the context is None"),
        (one(question=""), "the question is ''"),
        (one(question="\ud800?"), ": half of a surrogate pair"),
        (one(id="\udfff"), ": half of a surrogate pair"),
        (one(id=None), "the id is None"),
        (one(answers=[]), r"\(q1\) has no answer"),
        (one(answers=[{"text": "Rome", "answer_start": 30}]), "answer_start 30 lies outside the context of 32"),
        (one(answers=[{"text": "Rome", "answer_start": -4}]), "lies outside the context"),
        (one(answers=[{"text": "Rome", "answer_start": "14"}]), "answer_start is '14'; write a whole number"),
        (one(answers=[{"text": "Rome", "answer_start": 15}]), "stands 'ome.', not the answer 'Rome'"),
        (one(answers=[{"text": "", "answer_start": 3}]), "an answer is ''"),
        (squad([(CONTEXT, [question(n, "?", CONTEXT, "Rome") for n in (1, 2, 1)])]), "'q1' occurs twice, first at"),
        (squad([]), "has no questions"),
        ({"data": [{"paragraphs": None}]}, 'article 1 has no list of objects "paragraphs"'),
        ([], "has no rows"),
    ],
)
def test_each_defect_is_named_in_one_line(tmp_path: Path, file: Any, said: str) -> None:
    path = write(tmp_path / "train.json.gz", file)
    with pytest.raises(UserError, match=said) as caught:
        load_questions(str(path), test_fraction=0.5)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"{}", "no data file known here; allowed are .csv, .tsv, .jsonl, .json"),
        ("a.csv", b"id,question,context,answers\nx,?,c,c\n", "in a .json or .jsonl file"),
        ("a.json", b"{", "truncated JSON"),
        ("a.json", b'{"data": "\xe9"}', "not UTF-8"),
        ("a.json.gz", b"{}", "can't be read"),
        ("a.json.gz", gzip.compress(b"{}", mtime=0)[:-6], "can't be read"),
        ("a.jsonl", b'{"id": "1", "question": "?", "context": "c", "answers": "c"}', "the answers are 'c'"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_questions(str(tmp_path / name), test_fraction=0.5)


def test_questions_none_of_which_has_an_answer_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", one(answers=[], is_impossible=True))
    with pytest.raises(UserError, match=r"a\.json has no question with an answer"):
        load_questions(str(path), test_fraction=0.5, unanswerable=True)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_questions(str(path), test_fraction=0.5)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


ROME = {"text": ["Rome"], "answer_start": [14]}
ROWS = [{"id": f"q{n}", "question": "Where?", "context": f"{CONTEXT} {n}", "answers": ROME} for n in range(2)]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", TYPED)
def test_a_damaged_file_of_rows_is_refused_in_one_line(tmp_path: Path, kind: str, damage: str) -> None:
    path = write_rows(kind, tmp_path, ROWS)
    assert len(load_questions(str(path), test_fraction=0.5).train) == 1
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    refusal(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"context": 3}, "the context is 3"),
        ({"context": [[CONTEXT]]}, "the context is [['Anna"),
        ({"question": ["Where?"]}, "the question is ['Where?']"),
        ({"id": 3}, "the id is 3"),
        ({"id": ["q1"]}, "the id is ['q1']"),
        ({"answers": "Rome"}, "the answers are 'Rome'"),
        ({"answers": [{"text": "Rome", "answer_start": 14}]}, "the answers are [{'text': 'Rome'"),
        ({"answers": {"text": "Rome", "answer_start": 14}}, "the answers are {"),
        ({"answers": {"text": [["Rome"]], "answer_start": [[14]]}}, "an answer is ['Rome']"),
        ({"answers": {"text": ["Rome"], "answer_start": ["14"]}}, "answer_start is '14'; write a whole number"),
    ],
)
@pytest.mark.parametrize("kind", [*TYPED, "saved"])
def test_wrong_types_are_refused_in_one_line(tmp_path: Path, kind: str, change: dict[str, Any], said: str) -> None:
    # A column of Parquet and Arrow has one type.
    rows = [ROWS[0] if kind in JSON else ROWS[0] | change, ROWS[1] | change]
    assert said in refusal(write_rows(kind, tmp_path, rows))


def test_a_small_file_does_not_unpack_without_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "LARGEST_UNPACKED", 100_000)
    for name, size, said in (("a.json.gz", 100_000, "truncated JSON"), ("b.json.gz", 100_001, "unpacks to more than")):
        (tmp_path / name).write_bytes(gzip.compress(b'{"data": [' + b" " * (size - 10)))
        with pytest.raises(UserError, match=said):
            load_questions(str(tmp_path / name), test_fraction=0.5)
    bomb = tmp_path / "c.json.gz"
    bomb.write_bytes(gzip.compress(b" " * 2**20) * 200)
    tracemalloc.start()
    with pytest.raises(UserError, match="unpacks to more than 100,000 bytes"):
        load_questions(str(bomb), test_fraction=0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6, "200 MB are not unpacked to be refused"


@pytest.mark.shared
def test_the_real_files_are_read_whole(shared_data: Path) -> None:
    found = load_questions(str(shared_data / "squad"))
    assert (len(found.train), len(found.test)) == (87_599, 10_570)
    assert sum(map(len, found.test.answers)) == 34_726


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, of a list its first alone."""
    yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*place, key))


def test_a_value_of_any_type_anywhere_in_squads_json_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    answer = {"text": "red", "answer_start": 12}
    questions = [{"id": str(number), "question": "What color?", "answers": [answer]} for number in range(3)]
    whole = {"data": [{"title": "t", "paragraphs": [{"context": "The card is red here.", "qas": questions}]}]}
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    tried, said = 0, []
    for place in places(whole):
        for value in (None, 0, 1.5, True, "x", "", [], {}, [1], [None], {"a": 1}, -1, 10**30, deep):
            changed = copy.deepcopy(whole)
            holder: Any = changed
            for key in place[:-1]:
                holder = holder[key]
            if place:
                holder[place[-1]] = value
            (tmp_path / "train.json").write_text(json.dumps(changed if place else value))
            tried += 1
            try:
                split_of(read_question_table(tmp_path / "train.json"))
            except UserError as error:
                said.append(brief(error_line(error)))
    assert tried > 200
    assert [message for message in said if "\n" in message or len(message) > LONGEST_MESSAGE] == []
