"""Files of results: what is none is said in one line, whatever stands in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.benchmarks.outcome.load import load_result
from isotrain.cli.commands.compare import compare
from isotrain.cli.commands.history import history
from support.results import end_to_end, end_to_end_side, put, timed_loop, whole_process
from typer import Typer
from typer.testing import CliRunner

pytestmark = pytest.mark.core

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": "isotrain.bench/2", "targets": [', "x.json:1: truncated JSON"),
        ("", "x.json:1: truncated JSON"),
        ("[1, 2]", "its schema is None"),
        ('{"schema": "pytest-benchmark"}', "its schema is 'pytest-benchmark', known are isotrain.bench/2"),
        ('{"schema": "isotrain.bench/2"}', "it lacks created, status, valid"),
        ('{"schema": []}', "its schema is []"),
        (b"\xff\xfe\x00", "is UTF-16"),
        ("[" * 100_000, "x.json:1: nested"),
        ("9" * 5000, "x.json:1: a whole number of 5,000 digits"),
    ],
)
def test_what_is_no_result_is_said_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        load_result(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [-0.5, 0.0, float("nan"), None, "fast"])
def test_times_that_no_clock_gives_are_refused(write: Write, value: object) -> None:
    def backwards(result: dict[str, Any]) -> None:
        result["targets"][0]["processes"][1]["step_seconds"][2] = value

    with pytest.raises(UserError, match="are not the same number of positive seconds a process"):
        load_result(write("b.json", spoil=backwards))


@pytest.mark.parametrize("value", [None, [], {}, "x"])
@pytest.mark.parametrize(
    "place",
    [
        "config",
        "environment",
        "environment.git",
        "targets",
        "targets.0",
        "targets.0.reasons",
        "targets.0.figures.samples_per_second",
        "targets.0.device",
        "targets.0.model",
        "targets.0.work.samples",
        "targets.0.processes",
        "targets.0.processes.0",
        "targets.0.processes.0.environment",
    ],
)
def test_a_result_of_other_types_is_compared_or_refused_in_words(
    write: Write, tmp_path: Path, place: str, value: object
) -> None:
    """Never an error of Python's: whatever isn't used may be anything."""
    good, odd = write("a.json"), write("b.json", spoil=put(place, value))
    app = Typer()
    app.command("compare")(compare)
    app.command("history")(history)
    for arguments in (["compare", str(good), str(odd)], ["compare", str(odd), str(good)], ["history", str(tmp_path)]):
        ended = CliRunner().invoke(app, arguments)
        assert isinstance(ended.exception, (SystemExit, UserError, type(None))), (arguments, ended.exception)


def test_what_is_not_as_it_should_be_is_named_by_its_place(write: Write) -> None:
    with pytest.raises(UserError, match=r"targets.0.device.name: input should be a valid string"):
        load_result(write("a.json", spoil=put("targets.0.device.name", 7)))
    with pytest.raises(UserError, match=r"it lacks targets.0.work.samples"):
        load_result(write("b.json", spoil=put("targets.0.work", {})))


def test_a_end_to_end_run_without_its_times_is_none(tmp_path: Path) -> None:
    result = end_to_end(end_to_end_side(whole_process(seconds=0.0)))
    (tmp_path / "a.json").write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(UserError, match=r"sides.0.processes.0.seconds: input should be greater than 0"):
        load_result(tmp_path / "a.json")
    result = end_to_end(end_to_end_side(timed_loop(), extrapolated=False))
    (tmp_path / "a.json").write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(UserError, match="processes of side 'isotrain train' are not those that it is of"):
        load_result(tmp_path / "a.json")
