"""A result as CSV and Markdown: every figure, and what isn't valid marked as such."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest
from isotrain.benchmarks.harness.environment import describe
from isotrain.benchmarks.harness.plan import Options, make_plan
from isotrain.benchmarks.outcome.build import build_result
from isotrain.benchmarks.outcome.end_to_end import EndToEnd
from isotrain.benchmarks.outcome.model import Bench
from isotrain.benchmarks.reports.csv_markdown import result_markdown, rows, to_csv
from support.results import end_to_end, end_to_end_side, whole_process


@pytest.fixture
def result(all_runs: Callable[..., Any]) -> Bench:
    """A valid target, an invalid one and, on an emulated card, one that nobody ran."""
    plan = make_plan(Options(workloads=("forward",), processes=3, blocks=3))
    device = {"backend": "tt-emulated", "device": "cpu", "name": "wormhole emulated", "emulated": True}
    runs = all_runs(plan, {1: {"reasons": ["a|b"]}, 2: {"device": device}})
    document = build_result(plan, runs, describe()).document()
    named = {"backend": "tt-emulated", "label": "tt-emulated forward packed auto x8"}
    document["targets"][2].update(**named, emulated=True, share_of_peak=None)
    return Bench.model_validate(document)


def test_the_csv_has_every_figure_with_all_its_digits(result: Bench) -> None:
    sound, invalid, emulated, *_ = csv.DictReader(io.StringIO(to_csv(rows(result))))
    entry = result.document()["targets"][0]
    for name, interval in entry["figures"].items():
        assert float(sound[f"{name}_low"]) == interval["low"]
    assert float(sound["roofline_intensity_flop_per_byte"]) == entry["roofline"]["intensity_flop_per_byte"]
    assert sound["energy_source"] == "unavailable: a test"
    assert sound["joules_per_sample_median"] == ""
    assert float(sound["seconds_first_step"]) == 0.25
    assert (sound["valid"], invalid["valid"], invalid["reasons"]) == ("True", "False", "a|b (process 1, 2, 3)")
    assert emulated["target"].startswith("tt-emulated")
    assert emulated["roofline_bound"] == ""
    assert sound["random_weights"] == "True"


def test_the_page_marks_what_is_invalid_and_keeps_its_columns(result: Bench) -> None:
    lines = [line for line in result_markdown(result).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4
    assert len({line.count("|") for line in lines}) == 1, "a bar in a text is no column"
    assert "False" in lines[3]
    assert "a/b" in lines[3]
    sound = dict(zip(*([cell.strip() for cell in lines[row].split("|")] for row in (0, 2)), strict=True))
    assert sound["samples_per_second"] == "16 (16 to 16)"
    assert sound["energy_source"] == "unavailable: a test"
    phases = {f"seconds_{name}" for name in ("import", "open", "load", "first_step", "later_compiles", "steady")}
    assert phases | {"padded_tokens_per_second", "warm_up_steps", "warm_up_steady", "n", "peak_bytes"} <= sound.keys()


def test_a_target_without_figures_keeps_its_row(all_runs: Callable[..., Any]) -> None:
    plan = make_plan(Options(workloads=("forward",), processes=3, blocks=3))
    built = build_result(plan, [run for run in all_runs(plan) if run.target == 0], describe(), interrupted=True)
    table = rows(built)
    assert [row["status"] for row in table] == ["complete", *["not run"] * 3]
    assert table[0].keys() == table[1].keys()
    assert "not run" in to_csv(table)


def test_a_end_to_end_run_is_a_row_a_side() -> None:
    seconds = {"median": 90.0, "low": 89.0, "high": 91.0}
    side = end_to_end_side(whole_process(peak_bytes=5), seconds=seconds)
    result = EndToEnd.model_validate(end_to_end(side))
    assert rows(result)[0]["seconds_low"] == 89.0
    assert rows(result)[0]["peak_bytes"] == 5
    assert "| isotrain train | False | True | 90 (89 to 91) |" in result_markdown(result)
