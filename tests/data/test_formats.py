"""Every format that data come in says the same, and is refused in one line where it is damaged."""

from __future__ import annotations

import gzip
import json
import os
import random
import tracemalloc
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from isotrain import UserError
from isotrain.albert_core.data import unpacked
from isotrain.albert_core.data.datasets import RawDataset, load_dataset
from isotrain.albert_core.data.questions import load_questions
from isotrain.albert_core.data.squad_file import read_question_table
from isotrain.albert_core.data.table_files import TABLE_SUFFIXES, read_table, table_parts
from pyarrow import parquet
from support.command import Invoke, one_line_error
from support.data_files import DAMAGE, FORMATS, JSON, TYPED, saved, write_rows
from support.small_questions import write_questions

TEXTS = ["one, two; three\tfour", 'say "hi"', "two\nlines", "zażółć 中文 🙂\u2028x", "  padded  ", "NULL and void"]
ROWS = [{"review": text, "stars": 1 + number % 5} for number, text in enumerate(TEXTS * 2)]


def refusal(path: Path, load: Callable[..., Any] = load_dataset, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(str(path), **({"test_fraction": 0.3} | options))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def in_csv(tmp_path: Path) -> RawDataset:
    return load_dataset(str(write_rows("csv", tmp_path, ROWS, "wanted")), test_fraction=0.5)


def test_every_suffix_has_a_format_here() -> None:
    assert {name.removeprefix("rows") for name in FORMATS.values()} == set(TABLE_SUFFIXES)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_says_the_same(tmp_path: Path, in_csv: RawDataset, kind: str) -> None:
    path = write_rows(kind, tmp_path, ROWS)
    table = read_table(path)
    assert (table.columns, table.column("review")) == (["review", "stars"], TEXTS * 2)
    assert [row for part in table_parts(path, 5) for row in part.rows] == table.rows
    assert [len(part.rows) for part in table_parts(path, 5)] == [5, 5, 2]
    found = load_dataset(str(path), test_fraction=0.5)
    assert found.fingerprint == in_csv.fingerprint
    assert (found.label_names, found.text_columns) == (["1", "2", "3", "4", "5"], ("review",))
    (tmp_path / "folder").mkdir()
    for split in ("train", "validation"):
        write_rows(kind, tmp_path / "folder", ROWS, split)
    found = load_dataset(str(tmp_path / "folder"))
    assert found.train.texts == found.test.texts == TEXTS * 2


def test_the_hubs_own_files_are_found(tmp_path: Path) -> None:
    for split in ("train-00000-of-00001", "test-00000-of-00001"):
        write_rows("parquet", tmp_path, ROWS, split)
    assert len(load_dataset(str(tmp_path)).test) == len(ROWS)
    write_rows("csv", tmp_path, ROWS, "train")
    assert "has the train split 2 times" in refusal(tmp_path, test_fraction=None)


def shards(kind: str, folder: Path, split: str, sizes: list[int]) -> list[Path]:
    """The rows again in several files, as the Hub names them."""
    folder.mkdir(exist_ok=True)
    ends = list(accumulate(sizes))
    return [
        write_rows(kind, folder, ROWS[end - size : end], f"{split}-{number:05}-of-{len(sizes):05}")
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


@pytest.mark.parametrize("inner", ["", "data"])
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv.gz"])
def test_a_split_in_several_files_is_one(tmp_path: Path, in_csv: RawDataset, kind: str, inner: str) -> None:
    shards(kind, tmp_path / inner, "train", [5, 1, 6])
    assert load_dataset(str(tmp_path), test_fraction=0.5).fingerprint == in_csv.fingerprint
    shards(kind, tmp_path / inner, "validation", [6, 6])
    found = load_dataset(str(tmp_path))
    assert found.train.texts == found.test.texts == TEXTS * 2


def test_questions_in_several_files_are_one_split(tmp_path: Path) -> None:
    table = read_question_table(write_questions(tmp_path / "nested") / "train.json")
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    (tmp_path / "shards").mkdir()
    for number, part in enumerate((rows[:4], rows[4:])):
        write_rows("parquet", tmp_path / "shards", part, f"train-{number:05}-of-00002")
    found = load_questions(str(tmp_path / "shards"), test_fraction=0.5)
    assert len(found.train) + len(found.test) == len(rows)


def test_what_is_wrong_in_one_of_several_files_is_said_with_its_name(tmp_path: Path) -> None:
    files = shards("parquet", tmp_path, "train", [5, 1, 6])
    marked = [{**row, "stars": "N/A" if row is ROWS[7] else "1"} for row in ROWS[6:]]
    write_rows("parquet", tmp_path, marked, files[2].stem)
    assert f"{files[2]}, row 1: the label 'N/A'" in refusal(tmp_path)
    write_rows("parquet", tmp_path, [{"review": " ", "stars": 1}], files[1].stem)
    write_rows("parquet", tmp_path, [{"review": "", "stars": 1}] * 6, files[2].stem)
    empty = refusal(tmp_path)
    assert f"{files[0]} (3 shards) has 7 empty texts" in empty
    assert f"({files[1]}, row 0; {files[2]}, row 0; {files[2]}, row 1; " in empty
    repeated = [{"id": number, "review": "x", "stars": 1} for number in (0, 1)]
    for file in files:
        write_rows("parquet", tmp_path, repeated, file.stem)
    assert f"{files[1]}, row 0: id '0' occurs twice, first at {files[0]}, row 0" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"review": "x", "stars": "1"}], "the label '1' stands as 1 before"),
        ([{"review": 1, "stars": 1}], "is 1 and no text"),
        ([{"review": "x", "stars": [1]}], "no name and no number"),
        ([{"review": "x"}], "is empty"),
        ([{"body": "x", "stars": 1}], "1 empty texts under 'review'"),
    ],
)
def test_files_of_a_split_with_other_columns_or_types_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], said: str
) -> None:
    files = shards("parquet", tmp_path, "train", [6, 6])
    write_rows("parquet", tmp_path, rows, files[1].stem)
    message = refusal(tmp_path)
    assert said in message
    assert f"{files[1]}, row 0" in message


def test_files_of_a_split_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    files = shards("parquet", tmp_path, "train", [5, 1, 6])
    files[1].unlink()
    assert f"lacks '{files[1].name}': the train split has 3 files by their names" in refusal(tmp_path)
    files[0].unlink()
    assert f"lacks '{files[0].name}', '{files[1].name}'" in refusal(tmp_path)
    shards("parquet", tmp_path, "train", [6, 6])
    assert "has the train split 2 times" in refusal(tmp_path)
    files[2].unlink()
    (tmp_path / "train-00000-of-00002.parquet").rename(tmp_path / "train-00002-of-00002.parquet")
    assert "lacks 'train-00000-of-00002.parquet', 'train-00002-of-00002.parquet'" in refusal(tmp_path)


def test_files_of_a_split_with_other_names_of_classes_are_refused(tmp_path: Path) -> None:
    for number, names in enumerate((["no", "yes"], ["yes", "no"])):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        rows = datasets.Dataset.from_dict({"text": list("abcd"), "label": [0, 1] * 2}, features=features)
        rows.to_parquet(str(tmp_path / f"train-{number:05}-of-00002.parquet"))
    assert "train-00001-of-00002.parquet has other names of classes than" in refusal(tmp_path)


def test_what_datasets_saved_says_the_same(tmp_path: Path, in_csv: RawDataset) -> None:
    lone = saved(tmp_path / "lone", ROWS)
    assert load_dataset(str(lone), test_fraction=0.5).fingerprint == in_csv.fingerprint
    several = saved(tmp_path / "several", ROWS, dev=ROWS[:6], extra=ROWS[:1])
    found = load_dataset(str(several))
    assert (found.train.texts, found.test.texts) == (TEXTS * 2, TEXTS)
    assert "no test split" in refusal(several, test_fraction=None, evaluation_split="test")
    assert "drop test_fraction" in refusal(several)
    assert "set test_fraction" in refusal(lone, test_fraction=None)
    (several / "train.csv").write_text("text,label\na,b\n")
    assert "train split twice: train.csv, and as `datasets` saved it" in refusal(several)


def test_names_of_classes_come_with_the_columns(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "a", "yes"])}
    )
    rows = datasets.Dataset.from_dict({"text": list("abcd"), "label": [2, 0, 2, 0]}, features=features)
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    rows.save_to_disk(str(tmp_path / "saved"))
    for name in ("rows.parquet", "saved"):
        found = load_dataset(str(tmp_path / name), test_fraction=0.5)
        assert (found.label_names, sorted(found.train.labels)) == (["no", "a", "yes"], [0, 2])


@pytest.mark.parametrize("kind", TYPED)
@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        ((1.0, 0.0, 1.0, 0.0), ["0", "1"], [1, 0]),
        ((-1, 1, -1, 1), ["-1", "1"], [0, 1]),
        ((True, False, True, False), ["false", "true"], [1, 0]),
        ((7, 10**17, 7, 10**17), ["7", f"{10**17}"], [0, 1]),
    ],
    ids=str,
)
def test_typed_labels_are_classes(tmp_path: Path, kind: str, labels: Any, names: list[str], ids: list[int]) -> None:
    rows = [{"text": f"{number}", "label": label} for number, label in enumerate(labels)]
    for split in ("train", "test"):
        write_rows(kind, tmp_path, rows, split)
    found = load_dataset(str(tmp_path))
    assert (found.label_names, found.train.labels) == (names, ids * 2)


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": {"features": 3}}', b"\xff", b"[" * 100_000])
def test_damaged_names_of_classes_are_none(tmp_path: Path, metadata: bytes) -> None:
    rows = pyarrow.table({"text": list("abcd"), "label": [1, 0] * 2}).replace_schema_metadata({"huggingface": metadata})
    parquet.write_table(rows, tmp_path / "rows.parquet")
    assert load_dataset(str(tmp_path / "rows.parquet"), test_fraction=0.5).label_names == ["0", "1"]


def test_questions_say_the_same_in_every_format(tmp_path: Path) -> None:
    nested = write_questions(tmp_path / "nested") / "train.json"
    table = read_question_table(nested)
    wanted = load_questions(str(nested), test_fraction=0.5)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    for path in [write_rows(kind, tmp_path, rows, kind.replace(" ", "-")) for kind in (*TYPED, "saved")]:
        found = load_questions(str(path), test_fraction=0.5)
        assert (found.train.content, found.test.content) == (wanted.train.content, wanted.test.content)


def test_cells_of_a_parquet_are_json_values(tmp_path: Path) -> None:
    columns = {
        "text": pyarrow.array(["a", "a", None]).dictionary_encode(),
        "label": pyarrow.array([1.0, float("nan"), None]),
        "day": pyarrow.array([0, 1, None], pyarrow.date32()),
        "price": pyarrow.array([1, 2, None], pyarrow.int8()).cast(pyarrow.decimal128(5, 2)),
        "tags": [["x"], [], None],
        "image": [b"\xff\xd8", b"", None],
        "large": pyarrow.array(["a", "b", None], pyarrow.large_string()),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    table = read_table(tmp_path / "rows.parquet")
    assert table.columns == ["text", "label", "day", "price", "tags", "large"]
    assert table.rows == [
        ["a", 1.0, "1970-01-01", "1.00", ["x"], "a"],
        ["a", None, "1970-01-02", "2.00", [], "b"],
        [None] * 6,
    ]
    assert json.dumps(table.rows, allow_nan=False)
    assert table.remarks == (f"{table.origin}: columns without texts or numbers are left out: 'image (binary)'",)
    with pytest.raises(UserError, match=r"no column 'image', .*are left out: 'image \(binary\)'$"):
        load_dataset(str(tmp_path / "rows.parquet"), text_column="image", test_fraction=0.5)
    assert table.place(2).endswith("rows.parquet, row 2")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ([("image", [b"\xff"])], "has no column of texts or numbers, it has 'image'"),
        ([("text", [b"\xff"]), ("label", [1])], "no text column"),
        ([("text", ["a"]), ("text", ["b"]), ("label", [1])], "columns that appear twice: 'text'"),
        ([("tokens", [[["a"]]]), ("spans", [{"start": [1]}])], "no text column"),
    ],
    ids=["binary", "binary texts", "a name twice", "nested"],
)
def test_a_foreign_parquet_is_refused_in_one_line(
    invoke: Invoke, tmp_path: Path, columns: list[tuple[str, Any]], said: str
) -> None:
    table = pyarrow.table([pyarrow.array(cells) for _, cells in columns], names=[name for name, _ in columns])
    parquet.write_table(table, tmp_path / "a.parquet")
    keys = ("dataset_id=a.parquet", "test_fraction=0.3", "model_name=random:tiny")
    one_line_error(invoke("train", "quickstart", *(f"--set={key}" for key in keys)), "a.parquet", said)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


# What is wrong with the rows.
CONTENT = {
    "no text column": ([{"body": "a", "label": 1}, {"body": "b", "label": 2}], "no text column"),
    "no label column": ([{"text": "a", "gold": 1}, {"text": "b", "gold": 2}], "no label column"),
    "an empty text": ([{"text": "a", "label": 1}, {"text": "  ", "label": 2}], "empty texts"),
    "an empty label": ([{"text": "a", "label": "x"}, {"text": "b", "label": ""}], "is empty"),
    "a marker as label": ([{"text": "a", "label": "x"}, {"text": "b", "label": "N/A"}], "says that there is none"),
    "a fraction as label": ([{"text": "a", "label": 1.5}, {"text": "b", "label": 2.0}], "fraction"),
    "one label": ([{"text": "a", "label": 7}, {"text": "b", "label": 7}], "one label only"),
    "a repeated id": ([{"id": 1, "text": "a", "label": 7}, {"id": 1, "text": "b", "label": 8}], "occurs twice"),
}
# What only values with types can have.
TYPES = {
    "numbers as texts": ([{"text": 1, "label": 1}, {"text": 2, "label": 2}], "and no text"),
    "lists as texts": ([{"text": ["a"], "label": 1}, {"text": ["b"], "label": 2}], "and no text"),
    "lists as labels": ([{"text": "a", "label": [1]}, {"text": "b", "label": [2]}], "no name and no number"),
    "objects as labels": ([{"text": "a", "label": {"x": 1}}, {"text": "b", "label": {"x": 2}}], "no name"),
    "a missing label": ([{"text": "a", "label": 1}, {"text": "b", "label": None}], "is empty"),
    "a missing text": ([{"text": "a", "label": 1}, {"text": None, "label": 2}], "empty texts"),
}
# What rows of one column can be in JSON alone: elsewhere a column has one type.
MIXED = {
    "a label in two ways": ([{"text": "a", "label": 1}, {"text": "b", "label": "1"}], "'1' stands as 1 before"),
    "a number among texts": ([{"text": "a", "label": 1}, {"text": 2, "label": 2}], "is 2 and no text"),
    "a list among labels": ([{"text": "a", "label": 1}, {"text": "b", "label": [2]}], "no name and no number"),
    "other columns": ([{"text": "a", "label": 1}, {"review": "b", "stars": 2}], "empty texts"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, kind: str, damage: str) -> None:
    path = write_rows(kind, tmp_path, ROWS)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    refusal(path)


@pytest.mark.parametrize("content", CONTENT | TYPES | MIXED)
@pytest.mark.parametrize("kind", [*FORMATS, "saved"])
def test_wrong_rows_are_refused_in_one_line(tmp_path: Path, kind: str, content: str) -> None:
    # Of what `datasets` reads, texts and labels alone are taken, and no ids.
    if (content in TYPES and kind not in (*TYPED, "saved")) or (content, kind) == ("a repeated id", "saved"):
        return
    if content in MIXED and kind not in JSON:
        return
    rows, said = (CONTENT | TYPES | MIXED)[content]
    assert said in refusal(write_rows(kind, tmp_path, rows))


@pytest.mark.parametrize("kind", [*FORMATS, "saved"])
def test_a_command_refuses_a_damaged_file_and_leaves_nothing(invoke: Invoke, tmp_path: Path, kind: str) -> None:
    data = write_rows(kind, tmp_path, ROWS, "data")
    if kind == "saved":
        (data / "data-00001-of-00002.arrow").unlink()
    else:
        data.write_bytes(data.read_bytes()[:50])
    keys = (f"dataset_id={data.name}", "test_fraction=0.3", "model_name=random:tiny")
    one_line_error(invoke("train", "quickstart", *(f"--set={key}" for key in keys)), data.name)
    assert list(tmp_path.iterdir()) == [data]


def with_last_shard(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Puts other rows into the last file of a folder that `datasets` saved."""
    other = saved(folder.with_name("other"), rows)
    (other / "data-00001-of-00002.arrow").replace(folder / "data-00001-of-00002.arrow")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "state.json").write_text("{"), "state.json:1: truncated JSON"),
        (lambda folder: (folder / "state.json").write_text("[]"), "state.json:1: a JSON list"),
        (lambda folder: (folder / "state.json").write_text("{}"), "state.json has no list of names"),
        (lambda folder: (folder / "state.json").write_text('{"_data_files": []}'), "has no rows"),
        (
            lambda folder: (folder / "state.json").write_text('{"_data_files": [{"filename": "../x"}]}'),
            "state.json has no list of names",
        ),
        (lambda folder: (folder / "state.json").write_text('{"_data_files": [3]}'), "state.json has no list of names"),
        (lambda folder: (folder / "data-00000-of-00002.arrow").unlink(), "can't be read as a data set"),
        (lambda folder: (folder / "data-00000-of-00002.arrow").write_bytes(b""), "can't be read as a data set"),
        (lambda folder: (folder / "data-00000-of-00002.arrow").write_bytes(b"x" * 99), "can't be read as a data set"),
        (lambda folder: os.truncate(folder / "data-00000-of-00002.arrow", 600), "can't be read as a data set"),
        (lambda folder: with_last_shard(folder, [{"review": "x", "stars": "1"}] * 2), "can't be read as a data set"),
        (lambda folder: with_last_shard(folder, [{"review": [["x"]], "stars": 1}] * 2), "can't be read as a data set"),
    ],
)
def test_a_damaged_folder_of_datasets_is_refused_in_one_line(tmp_path: Path, damage: Any, said: str) -> None:
    folder = saved(tmp_path / "data", ROWS)
    damage(folder)
    assert said in refusal(folder)
    assert said in refusal(folder, load_questions)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("", "dataset_dict.json"),
        ('{"splits": ["train"', "dataset_dict.json:1: truncated JSON"),
        ("[]", "dataset_dict.json:1: a JSON list"),
        ("{}", "dataset_dict.json has no list of names"),
        ('{"splits": "train"}', "dataset_dict.json has no list of names"),
        ('{"splits": ["train", 3]}', "dataset_dict.json has no list of names"),
        ('{"splits": ["../data/train"]}', "dataset_dict.json has no list of names"),
        ('{"splits": ["train", "gone"]}', "gone/state.json"),
        ('{"splits": ["dev"]}', "has no train split"),
    ],
)
@pytest.mark.parametrize("load", [load_dataset, load_questions])
def test_a_damaged_list_of_splits_is_refused_in_one_line(
    tmp_path: Path, load: Callable[..., Any], index: str, said: str
) -> None:
    folder = saved(tmp_path / "data", ROWS, dev=ROWS)
    (folder / "dataset_dict.json").write_text(index)
    assert said in refusal(folder, load, test_fraction=None)


def test_nobody_waits_for_a_pipe_among_the_files(tmp_path: Path) -> None:
    folder = saved(tmp_path / "data", ROWS)
    (folder / "data-00000-of-00002.arrow").unlink()
    os.mkfifo(folder / "data-00000-of-00002.arrow")
    assert "no regular file" in refusal(folder)
    for name in TABLE_SUFFIXES:
        os.mkfifo(tmp_path / f"train{name}")
        with pytest.raises(UserError, match="no regular file"):
            read_table(tmp_path / f"train{name}")


def peak_of(path: Path, said: str) -> int:
    """The most bytes that Python and pyarrow had at once while `path` was refused."""
    default = pyarrow.default_memory_pool()
    pool = pyarrow.proxy_memory_pool(default)
    pyarrow.set_memory_pool(pool)
    tracemalloc.start()
    try:
        assert said in refusal(path)
        return tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pyarrow.set_memory_pool(default)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind.endswith(".gz")])
@pytest.mark.parametrize("unit", [b"x" * 2**20, b" " * 2**20, b'{"text": "a", "label": 1}\n' * 2**15], ids=len)
def test_a_packed_file_does_not_unpack_without_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, unit: bytes
) -> None:
    monkeypatch.setattr(unpacked, "LARGEST_UNPACKED", 100_000)
    path = tmp_path / FORMATS[kind]
    path.write_bytes(gzip.compress(unit) * 100)
    assert peak_of(path, "unpacks to more than 100,000 bytes; unpack it") < 5e6


@pytest.mark.parametrize(
    "columns",
    [
        lambda: {"text": pyarrow.DictionaryArray.from_arrays([0] * 5000, ["x" * 100_000]), "label": [0, 1] * 2500},
        lambda: {"text": ["x" * 20_000_000], "label": [0]},
        lambda: {"text": ["x"] * 200_000, "label": [0] * 200_000},
    ],
    ids=["one long text in each row", "one page", "rows"],
)
def test_a_parquet_does_not_unpack_without_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: Callable[[], dict[str, Any]]
) -> None:
    monkeypatch.setattr(unpacked, "LARGEST_UNPACKED", 1_000_000)
    path = tmp_path / "rows.parquet"
    # Without its own schema, pyarrow reads plain texts.
    parquet.write_table(pyarrow.table(columns()), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 50_000
    assert peak_of(path, "unpacks to more than") < 1e7


def compressed(folder: Path) -> Path:
    """A data set as `datasets` saved it, in a stream of small buffers that unpack to 20 MB."""
    saved(folder, ROWS)
    # A dictionary and a column, so that both kinds of messages are there.
    texts = pyarrow.DictionaryArray.from_arrays([0] * 1000, ["x" * 10_000_000])
    rows = pyarrow.record_batch({"text": texts, "label": pyarrow.array([0] * 1_250_000)[:1000]})
    file = folder / "data-00000-of-00002.arrow"
    with pyarrow.ipc.new_stream(
        str(file), rows.schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")
    ) as stream:
        stream.write_batch(rows)
    assert file.stat().st_size < 50_000
    return file


def test_an_arrow_stream_does_not_unpack_without_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = compressed(tmp_path / "data")
    monkeypatch.setattr(unpacked, "LARGEST_UNPACKED", 1_000_000)
    assert peak_of(file.parent, f"{file} unpacks to more than") < 1e6
    # A buffer that says more than it holds.
    content = file.read_bytes()
    zstd = b"\x28\xb5\x2f\xfd"
    claim = (10_000_000).to_bytes(8, "little") + zstd
    assert content.count(claim) == 1
    file.write_bytes(content.replace(claim, (2**40).to_bytes(8, "little") + zstd))
    monkeypatch.setattr(unpacked, "LARGEST_UNPACKED", 2**29)
    assert peak_of(file.parent, f"{file} unpacks to more than") < 1e6


def test_a_compressed_arrow_stream_is_read(tmp_path: Path, in_csv: RawDataset) -> None:
    folder = saved(tmp_path / "data", ROWS)
    for file in folder.glob("*.arrow"):
        rows = pyarrow.ipc.open_stream(file.read_bytes()).read_all()
        with pyarrow.ipc.new_stream(
            str(file), rows.schema, options=pyarrow.ipc.IpcWriteOptions(compression="lz4")
        ) as stream:
            stream.write_table(rows)
    assert load_dataset(str(folder), test_fraction=0.5).fingerprint == in_csv.fingerprint


@pytest.mark.parametrize("kind", [kind for kind in (*FORMATS, "saved") if kind.endswith((".gz", "parquet", "saved"))])
def test_any_changed_byte_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    data = write_rows(kind, tmp_path, ROWS)
    file = next(data.glob("*.arrow"), data)
    intact = file.read_bytes()
    chance = random.Random(5)
    messages: list[str] = []
    for _ in range(100):
        changed = bytearray(intact)
        for _ in range(chance.choice((1, 1, 4))):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        # Its memory may be mapped still.
        file.unlink()
        file.write_bytes(changed)
        try:
            load_dataset(str(data), test_fraction=0.5)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert [message for message in messages if "\n" in message] == []
