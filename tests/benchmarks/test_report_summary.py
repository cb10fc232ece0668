"""What the report answers on its first screen, and that it says each thing once."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from isotrain.albert_core.output.charts import BarChart
from isotrain.benchmarks.reports.blocks import Section, Table, Words
from isotrain.benchmarks.reports.html.contents import contents
from isotrain.benchmarks.reports.html.loading import load_results
from support.results import candidate, end_to_end_run, parity, write_run


def sections(folder: Path, **documents: dict[str, Any]) -> dict[str, Section]:
    """The sections of a report of these documents, by their keys."""
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    return {section.key: section for section in contents(load_results(folder))}


def sentences(section: Section) -> list[str]:
    return [block.text for block in section.blocks if isinstance(block, Words)]


def bars(section: Section) -> list[tuple[str, float, str]]:
    (chart,) = section.charts
    assert isinstance(chart, BarChart)
    return [(bar.name, bar.value, bar.words) for bar in chart.bars]


@pytest.fixture
def two_kernels(bench_result: dict[str, Any]) -> dict[str, Any]:
    """Three valid targets of one workload, by two kernels; the rest is invalid or emulated."""
    for place, (target, rate) in enumerate(zip(bench_result["targets"], (900.0, 100.0, 300.0, 200.0), strict=False)):
        target |= {"workload": "forward", "label": f"cpu forward padded auto x{place}"}
        target["figures"]["samples_per_second"] = {"median": rate, "low": 0.9 * rate, "high": 1.1 * rate}
    bench_result["targets"][2]["kernel_used"] = {"name": "native", "version": "1", "notes": []}
    bench_result["targets"][2]["share_of_peak"]["model"] = 0.425
    bench_result["targets"][4] |= {"valid": False, "reasons": ["NaN"]}
    return bench_result


def test_the_fastest_is_named_with_its_lead_over_another_kernel_and_its_share(
    two_kernels: dict[str, Any], tmp_path: Path
) -> None:
    summary = sections(tmp_path, bench=two_kernels)["summary"]
    assert sentences(summary) == [
        "Fastest in forward: cpu forward padded auto x2 (random weights) by native on Fake CPU, 300 samples/s, 42.5% "
        "of the measured peak; 1.50 times cpu forward padded auto x3 (random weights).",
        "Not judged: cpu (no parity result), tt-emulated (no parity result).",
    ]
    # The invalid 900 samples/s and the emulated target are no results.
    assert bars(summary) == [
        ("cpu forward padded auto x2", 300.0, ""),
        ("cpu forward padded auto x3", 200.0, ""),
        ("cpu forward padded auto x1", 100.0, ""),
    ]
    (chart,) = summary.charts
    assert chart.title == "All valid results · random weights"
    assert "3 targets without a valid throughput: see Throughput." in chart.words


def test_a_lead_within_the_noise_is_called_so(two_kernels: dict[str, Any], tmp_path: Path) -> None:
    two_kernels["targets"][2]["figures"]["samples_per_second"] = {"median": 210.0, "low": 190.0, "high": 230.0}
    (first, _) = sentences(sections(tmp_path, bench=two_kernels)["summary"])
    assert first.endswith("; 1.05 times cpu forward padded auto x3 (random weights), with intervals that overlap.")


def test_results_of_several_files_stand_in_one_chart_with_what_holds_for_some(
    two_kernels: dict[str, Any], tmp_path: Path
) -> None:
    quick = copy.deepcopy(two_kernels)
    quick["method"]["quick"] = True
    for target in quick["targets"]:
        target["figures"]["samples_per_second"]["median"] *= 1.05
    found = sections(tmp_path, a=two_kernels, b=quick, whole=end_to_end_run())["summary"]
    (chart,) = found.charts
    assert isinstance(chart, BarChart)
    assert chart.title == "All valid results · random weights"
    assert chart.groups == ("forward", "end-to-end runs")
    assert [(value, words) for _, value, words in bars(found)] == [
        (315.0, "smoke run, no result, b.json"),
        (300.0, "a.json"),
        (210.0, "smoke run, no result, b.json"),
        (200.0, "a.json"),
        (105.0, "smoke run, no result, b.json"),
        (100.0, "a.json"),
        (0.4, "whole.json"),
        (0.1, "extrapolated from 50 of 6,255 steps, whole.json"),
    ]
    assert "(random weights, smoke run, no result) by native on Fake CPU, 315 samples/s" in sentences(found)[0]


def test_who_agrees_who_does_not_and_who_was_not_judged(tmp_path: Path) -> None:
    found = sections(tmp_path, one=parity(), two=parity(candidate("cpu:float32", "float32", 1e-6)))["summary"]
    assert sentences(found) == [
        "Losses agree with cpu:float64: cpu:float32, cpu:bfloat16. Losses do not agree: tt-emulated:hifi2 (drift "
        "from step 12), xla:float32 (diverged from step 12). Not judged: cuda:float32 (failed), cpu:float32 other "
        "(refused)."
    ]
    (table,) = (block for block in found.blocks if isinstance(block, Table))
    assert [(row[0], row[1], row[-1]) for row in table.rows] == [
        ("cpu:float32", "✓ pass", "one.json"),
        ("cpu:bfloat16", "✓ pass", "one.json"),
        ("tt-emulated:hifi2", "△ drift", "one.json"),
        ("xla:float32", "✗ diverged", "one.json"),
        ("cuda:float32", "! failed", "one.json"),
        ("cpu:float32 other", "! refused", "one.json"),
        ("cpu:float32", "✓ pass", "two.json"),
    ]
    assert table.flagged == {2, 3, 4, 5}


def test_training_runs_alone_are_not_folded(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=300)
    found = sections(tmp_path)
    assert sentences(found["summary"]) == [
        "run, cpu bfloat16: completed · loss 3.5000, accuracy 0.1500 · random weights."
    ]
    assert {key: section.folded for key, section in found.items() if not section.folded} == {
        "summary": False,
        "training": False,
    }


def test_equal_machines_and_equal_notes_are_shown_once(bench_result: dict[str, Any], tmp_path: Path) -> None:
    other = copy.deepcopy(bench_result)
    other |= {"created": "2026-02-03T04:05:06+00:00", "notes": [*bench_result["notes"], "a note of its own"]}
    other["environment"]["load"] = [9.0, 9.0, 9.0]
    third = copy.deepcopy(bench_result)
    third["environment"]["cpu"]["model"] = "Another CPU"
    bench_result["notes"].append("a common note")
    third["notes"].append("a common note")
    found = sections(tmp_path, a=bench_result, b=other, c=third)
    origins, *machines = (block for block in found["environment"].blocks if isinstance(block, Table))
    assert [row[0] for row in origins.rows] == ["a.json", "b.json", "c.json"]
    assert "load 9.0, 9.0, 9.0" in origins.rows[1][-1]
    assert [table.caption for table in machines] == ["Environment of a.json, b.json", "Environment of c.json"]
    (notes,) = (block for block in found["notes"].blocks if isinstance(block, Table))
    assert ("a.json, c.json", "a common note") in notes.rows
    assert ("b.json", "a note of its own") in notes.rows


def test_the_roofline_shows_the_part_in_which_the_targets_lie(bench_result: dict[str, Any], tmp_path: Path) -> None:
    bench_result["targets"] = bench_result["targets"][:2]
    for target in bench_result["targets"]:
        target["roofline"] |= {"intensity_flop_per_byte": 5.0, "roof_tflops": 0.05, "share": 0.5}
    (chart,) = sections(tmp_path, bench=bench_result)["roofline"].charts
    assert chart.x.span == (2.5, 10.0)
    low, high = chart.y.span
    assert low == pytest.approx(0.0125)
    # The measured roof is at 0.1 TFLOP/s where the chart ends, the faster copy's at twice that; the peak is at 1.
    assert high == pytest.approx(0.2 * 1.25)
