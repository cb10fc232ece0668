"""A table is described once: what a terminal, Markdown and the page show of it."""

from __future__ import annotations

import io

import pytest
from isotrain.benchmarks.reports.blocks import Block, Column, Heading, Section, Table, Words
from isotrain.benchmarks.reports.csv_markdown import to_markdown
from isotrain.benchmarks.reports.html.page import render_page
from isotrain.benchmarks.reports.terminal import print_blocks
from rich.console import Console

Entry = tuple[str, float, str]
COLUMNS = (
    Column[Entry]("name", lambda one: one[0], numeric=False),
    Column[Entry]("samples each second", lambda one: f"{one[1]:g}"),
    Column[Entry]("remark", lambda one: one[2], numeric=False, least_width=60),
)
ENTRIES = [("first", 10.0, ""), ("second", 2.5, "a|b"), ("third", 3.0, "")]
STYLES = {"first": "green", "second": "red", "third": "yellow"}
TABLE = Table("Rates", COLUMNS, ENTRIES, lambda one: STYLES[one[0]])


def printed(*blocks: Block, width: int) -> list[str]:
    output = io.StringIO()
    print_blocks(blocks, Console(file=output, width=width))
    return [line.rstrip() for line in output.getvalue().splitlines()]


def test_a_wide_terminal_shows_all_columns() -> None:
    assert printed(Heading("title"), Words("words"), TABLE, width=60) == [
        "title",
        "words",
        "Rates",
        "name    samples each second  remark",
        "first                    10",
        "second                  2.5  a|b",
        "third                     3",
    ]


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (40, ["Rates", "name    samples each second", "first                    10"]),
        (20, ["Rates", "            samples", "name    each second", "first            10"]),
        (12, ["Rates", "first", "  samples", "  each", "  second: 10"]),
    ],
)
def test_a_narrow_terminal_leaves_columns_out_breaks_headers_and_then_rows(width: int, lines: list[str]) -> None:
    shown = printed(TABLE, width=width)
    assert shown[: len(lines)] == lines
    assert "more columns from 60 characters on" in " ".join(shown)
    assert "a|b" not in shown


def test_markdown_and_the_page_have_all_columns() -> None:
    assert to_markdown(TABLE).splitlines() == [
        "| name | samples each second | remark |",
        "| --- | --- | --- |",
        "| first | 10 |  |",
        "| second | 2.5 | a/b |",
        "| third | 3 |  |",
    ]
    page = render_page("title", "lead", [Section("key", "Section", [TABLE, Words("loud", "red"), Words("low")])], "now")
    assert page.count('<tr class="flagged">') == 2, "the red row and the yellow one"
    assert '<td class="figure">2.5</td>' in page
    assert '<p class="strong">loud</p>' in page
    assert "<p>low</p>" in page


def test_columns_that_say_nothing_can_be_left_out() -> None:
    quiet = Table("Rates", COLUMNS, ENTRIES[:1]).without_empty_columns()
    assert [column.header for column in quiet.columns] == ["name", "samples each second"]
    assert TABLE.without_empty_columns().rows == TABLE.rows
