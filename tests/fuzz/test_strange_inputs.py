"""Configurations and data as strangers write them, read in this process: one clear refusal or a value, nothing else.

The changes are the storm's (`tests/storm/inputs.py`), which gives the same inputs to whole commands, thousands of them.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from isotrain import UserError
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.config.parsing import parse_json
from isotrain.albert_core.data.datasets import load_dataset
from isotrain.albert_core.data.questions import load_questions
from isotrain.albert_core.terminal.text import LONGEST_MESSAGE, brief, clean, error_line
from storm.inputs import KINDS, change

# The same cases at every run: what is new is looked for by the storm.
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))

Read = Callable[[Path], Any]


def read_labels(path: Path) -> Any:
    return load_dataset(str(path), test_fraction=0.3, drop_missing=path.stat().st_size % 2 == 0)


READERS: dict[str, tuple[str, Read]] = {
    "yaml": ("strange.yaml", load_config),
    "csv": ("rows.csv", read_labels),
    "tsv": ("rows.tsv", read_labels),
    "jsonl": ("rows.jsonl", read_labels),
    "json": ("rows.json", read_labels),
    "squad": ("questions.json", lambda path: load_questions(str(path), test_fraction=0.3)),
}


def told(read: Callable[[], Any]) -> None:
    """Reads: what is refused must be refused by a UserError that fits three lines and names a fix."""
    try:
        read()
    except UserError as error:
        message = brief(error_line(error))
        assert len(message) <= LONGEST_MESSAGE
        assert message == clean(message)
        assert ";" in message or ":" in message, message


def changed(text: str, chance: Random) -> bytes:
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        text = change(text, chance)
    data = text.encode("utf-8", errors="surrogatepass")
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.choice((b"", b"", b"", b"\xff", b"\x00", b"\r")) + data[at:]


@pytest.mark.parametrize("kind", READERS)
@QUICK
@given(chance=st.randoms(use_true_random=False), whole=st.booleans(), noise=st.binary(max_size=200))
def test_a_changed_file_is_read_or_refused(kind: str, chance: Random, whole: bool, noise: bytes) -> None:
    name, read = READERS[kind]
    text = KINDS[kind](chance)[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(noise if whole else changed(text, chance))
        told(lambda: read(path))


@QUICK
@given(chance=st.randoms(use_true_random=False))
def test_a_changed_option_is_read_or_refused(chance: Random) -> None:
    item = changed(KINDS["--set"](chance)[0], chance).decode("utf-8", errors="surrogateescape")
    told(lambda: load_config(None, [item]))


@QUICK
@given(text=st.text(), key=st.sampled_from(["wandb_project", "dataset_id", "model_name", "wandb_run_name"]))
def test_a_text_key_takes_any_text_or_says_why(text: str, key: str) -> None:
    def read() -> None:
        value = getattr(load_config(None, [f"{key}={text}"]).config, key)
        assert value == text or (value is None and text in ("", "null"))

    told(read)


@QUICK
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    ),
    indent=st.sampled_from([None, 1]),
)
def test_json_is_read_as_it_was_written(value: Any, indent: int | None) -> None:
    assert parse_json(json.dumps(value, indent=indent, ensure_ascii=False), "x", "mend it") == value


@QUICK
@given(rows=st.lists(st.tuples(TEXTS, st.sampled_from("abc")), min_size=6, max_size=12))
def test_a_csv_of_any_texts_is_read_as_it_was_written(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.csv")
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])

        def read() -> None:
            data = load_dataset(str(path), test_fraction=0.3)
            texts = sorted([*data.train.texts, *data.test.texts])
            assert texts == sorted(text for text, _ in rows)

        told(read)
