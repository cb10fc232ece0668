"""`isotrain history` on a few results: their order, their changes, and tables of any width."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.benchmarks.regression.history import load_history
from isotrain.benchmarks.reports.terminal_history import print_history
from isotrain.cli.commands.history import history
from rich.console import Console
from support.results import run_command

pytestmark = pytest.mark.core

Write = Callable[..., Path]


def dated(created: str, revision: str) -> Callable[[dict[str, Any]], None]:
    def date(result: dict[str, Any]) -> None:
        result["created"] = created
        result["environment"]["git"] = {"revision": revision * 40, "dirty": revision == "b", "changed_files": 1}

    return date


def test_a_history_is_in_the_order_of_measuring_with_each_change(write: Write, tmp_path: Path) -> None:
    write("2.json", -0.5, spoil=dated("2026-02-01T00:00:00+00:00", "b"))
    write("1.json", spoil=dated("2026-01-01T00:00:00+00:00", "a"))
    bad = {0: {"reasons": ["NaN"]}}
    write("3.json", changes=bad, spoil=dated("2026-03-01T00:00:00+00:00", "c"))
    write("4.json", options={"dtypes": ("float32",)})
    (tmp_path / "notes.json").write_text("{}", encoding="utf-8")
    found = load_history(tmp_path)
    rows = [row for row in found.rows() if row["target"] == "cpu forward padded auto x8"]
    assert [row["revision"] for row in rows[:3]] == ["a" * 10, "b" * 10 + "+", "c" * 10]
    assert rows[0]["change_median"] == ""
    assert rows[1]["change_median"] == pytest.approx(2.0, rel=0.05)
    assert not rows[2]["valid"]
    assert rows[2]["change_median"] == ""
    assert len(rows) == 4, "another configuration is a line of its own"
    assert rows[3]["change_median"] == ""
    assert found.skipped == ()
    assert found.foreign == "notes.json is no result of isotrain, and left out"
    shown = run_command(history, tmp_path)
    assert shown.exit_code == 0
    assert "INVALID" in shown.output
    assert "random:tiny (random weights)" in shown.output
    assert "2026-01-01 00:00" in shown.output
    assert "▁█x" in shown.output
    assert "2.000x*" in shown.output
    assert "notes.json is no result of isotrain, and left out" in shown.output
    listed = list(csv.DictReader(io.StringIO(run_command(history, tmp_path, "--format", "csv").stdout)))
    assert len(listed) == len(found.points)


def test_a_folder_without_results_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no result of isotrain bench"):
        load_history(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        load_history(tmp_path / "nowhere")


@pytest.mark.parametrize("width", [50, 60, 80, 120, 200])
def test_a_history_is_readable_at_any_width(write: Write, tmp_path: Path, width: int) -> None:
    for number in range(8):
        write(f"{number}.json", -0.05 * number, spoil=dated(f"2026-0{number + 1}-01T00:00:00+00:00", str(number)))
    console = Console(width=width, file=io.StringIO(), highlight=False)
    print_history(load_history(tmp_path), console)
    output = console.file.getvalue()
    lines = output.splitlines()
    assert max(map(len, lines)) <= width
    rows = [line.split() for line in lines if "2026-08-01" in line]
    assert rows
    assert all(row[2] == "7" * 10 and row[-1].rstrip("*").endswith("x") for row in rows)
    assert ("95 % interval" in output) == (width >= 72)
    assert "…" not in output
