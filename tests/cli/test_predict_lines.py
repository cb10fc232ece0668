"""`isotrain predict RUN -`: texts from standard input, one a line, answered as they come."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from isotrain import UserError
from isotrain.albert_core.inference import lines
from isotrain.albert_core.inference.lines import line_parts
from support.command import Invoke, one_line_error
from support.small_pairs import write_pairs


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Writes to what the command reads as standard input."""
    kept = os.dup(0)
    reader, writer = os.pipe()
    os.dup2(reader, 0)
    os.close(reader)
    yield writer
    os.dup2(kept, 0)
    os.close(kept)


def write(descriptor: int, *parts: bytes) -> None:
    for part in parts:
        os.write(descriptor, part)
    os.close(descriptor)


def read(*parts: bytes, pairs: bool = False) -> list[tuple[list[str], list[str] | None]]:
    """What comes of these bytes, each of which is read alone."""
    reader, writer = os.pipe()
    try:
        found = []
        several = line_parts(reader, pairs)
        for part in parts:
            os.write(writer, part)
            if b"\n" in part and part.strip():
                found.append(next(several))
        os.close(writer)
        return found + list(several)
    finally:
        os.close(reader)


def test_lines_are_given_as_they_come() -> None:
    assert read(b"a\nb\n", b"c\n", b"d") == [(["a", "b"], None), (["c"], None), (["d"], None)]
    assert read(b"a\nb", b"c\nd\n") == [(["a"], None), (["bc", "d"], None)]


def test_lines_end_in_two_ways_and_blank_ones_are_passed_over() -> None:
    assert read("\ufeffżółć 中\u2028文\r\n\r\n  \n\tx y\t\rz\n".encode()) == [(["żółć 中\u2028文", "\tx y\t\rz"], None)]
    assert read(b"a\tb\n", b"c\td\te\r\n", pairs=True) == [(["a"], ["b"]), (["c"], ["d\te"])]


def test_a_long_line_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 7)
    assert [text for texts, _ in read(b"x" * 50 + b"\nab\ncd\n" + b"y" * 20) for text in texts] == [
        "x" * 50, "ab", "cd", "y" * 20,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "pairs", "said"),
    [
        (b"", False, "standard input has no text; write one text a line"),
        (b"\n \r\n", False, "standard input has no text"),
        (b"a\n\xff\n", False, "standard input is not UTF-8: byte 0xff at byte offset 2 (line 2)"),
        (b"a\0\n", False, "standard input has a NUL byte at byte offset 1 (line 1)"),
        ("a\n".encode("utf-16"), False, "standard input is UTF-16"),
        (b"a\tb\n\nno tab\n", True, "standard input, line 3 is no pair, and this run was trained on pairs"),
        (b"a\t \n", True, "standard input, line 1 is no pair"),
    ],
)
def test_input_of_no_use_is_refused_by_its_line(content: bytes, pairs: bool, said: str) -> None:
    reader, writer = os.pipe()
    write(writer, content)
    with pytest.raises(UserError) as refused:
        list(line_parts(reader, pairs))
    os.close(reader)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_stream_that_can_not_be_read_is_said(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(UserError, match="standard input can't be read"):
        list(line_parts(folder, False))
    os.close(folder)


def test_the_command_answers_each_line_before_the_next_comes(invoke: Invoke, small_run: Path, stdin: int) -> None:
    texts = ["what is the fee", "the card is lost"]
    code, out, err = invoke("predict", small_run, *texts, "--json")
    assert code == 0, err
    # The second is written when the first was answered.
    asked: list[str] = []
    feed = os.write

    def predicting(self: object, given: list[str], pairs: list[str] | None = None) -> object:
        asked.append(given[0])
        if len(asked) == 1:
            feed(stdin, f"{texts[1]}\n".encode())
            os.close(stdin)
        return original(self, given, pairs)

    from isotrain.albert_core.inference.predict import Predictor

    original = Predictor.predict
    feed(stdin, f"{texts[0]}\n".encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "predict", predicting)
        code, streamed, err = invoke("predict", small_run, "-", "--json")
    assert code == 0, err
    assert asked == texts
    for one, other in zip(json.loads(streamed)["predictions"], json.loads(out)["predictions"], strict=True):
        assert one["probability"] == pytest.approx(other.pop("probability"), rel=1e-5)
        assert other.items() <= one.items()


def test_no_input_prints_nothing_but_one_line(invoke: Invoke, small_run: Path, stdin: int) -> None:
    os.close(stdin)
    result = invoke("predict", small_run, "-", "--json")
    one_line_error(result, "standard input has no text")
    assert result[1] == ""


def test_a_run_on_pairs_reads_two_texts_a_line(invoke: Invoke, tmp_path: Path, stdin: int) -> None:
    write_pairs(tmp_path / "data")
    keys = {"model_name": "random:tiny", "dtype": "float32", "max_length": 32, "mlp_hidden_size": 8, "num_epochs": 1}
    settings = [f"--set={key}={value}" for key, value in keys.items()]
    code, _, err = invoke("train", "--set=dataset_id=./data", "--set=run_name=pairs", *settings, "quickstart")
    assert code == 0, err
    # More than a pipe holds.
    content = b"the card was lost\tI heard a loan is open\n" * 3000
    writing = threading.Thread(target=write, args=(stdin, content))
    writing.start()
    code, out, err = invoke("predict", tmp_path / "runs" / "pairs", "-", "--json")
    writing.join()
    assert code == 0, err
    found = json.loads(out)["predictions"]
    assert len(found) == 3000
    assert (found[-1]["text"], found[-1]["text_pair"]) == ("the card was lost", "I heard a loan is open")
