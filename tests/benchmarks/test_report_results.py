"""What a report is made from: results found at any depth, and whatever can't be used named with the reason."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.albert_core.config.load import load_config
from isotrain.albert_core.loop.train import train
from isotrain.benchmarks.reports.html.loading import Results, load_results
from support.results import end_to_end_run, parity, write_run
from support.small_job import losses, settings, write_dataset

Change = Callable[[dict[str, Any]], Any]


def reasons(results: Results) -> dict[str, str]:
    return {one.path: one.reason for one in results.skipped}


def test_every_kind_is_found_at_any_depth(results_folder: Path) -> None:
    results = load_results(results_folder)
    assert [found.path for found in results.bench] == ["bench.json"]
    assert [found.path for found in results.end_to_end_runs] == ["deep/whole.json"]
    assert [found.path for found in results.parity] == ["deep/er/parity.json"]
    assert [found.path for found in results.runs] == ["runs/first", "runs/second"]


def test_what_can_not_be_used_is_named_with_the_reason(results_folder: Path) -> None:
    found = reasons(load_results(results_folder))
    assert set(found) == {"future.json", "truncated.json"}
    assert "'isotrain.bench/9' is none of isotrain.bench/2" in found["future.json"]
    assert "truncated JSON" in found["truncated.json"]


def test_a_run_in_progress_is_read_up_to_its_torn_line(results_folder: Path) -> None:
    first, second = (found.document for found in load_results(results_folder).runs)
    assert (len(first.loss), len(first.evaluations["accuracy"])) == (1200, 4)
    assert first.summary is not None
    assert len(second.loss) == 699
    assert second.summary is None
    assert second.record.device.emulated


def test_a_result_kept_in_a_runs_folder_is_found_and_the_runs_own_files_are_no_foreign_ones(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3)
    (run / "until-step-2-summary.json").write_text("{}")
    (run / "parity.json").write_text(json.dumps(parity()), encoding="utf-8")
    (run / "bench.json").write_text('{"schema": "isotrain.bench/2"', encoding="utf-8")
    results = load_results(tmp_path)
    assert [found.path for found in results.parity] == ["run/parity.json"]
    assert list(reasons(results)) == ["run/bench.json"]


def test_a_real_training_run_is_read_as_it_logged(tmp_path: Path) -> None:
    config = load_config(None, settings(write_dataset(tmp_path / "data"), tmp_path, threads=1))
    result = train(config)
    results = load_results(tmp_path / "runs")
    assert not results.skipped
    run = results.runs[0].document
    assert list(run.loss) == losses(result)
    for metric, value in result.metrics.items():
        assert run.evaluations[metric.removeprefix("eval/")][-1] == (result.step, value)
    assert run.summary is not None
    assert run.summary.status == "completed"
    assert run.record.cast_policy.label == "float32"
    assert [found.path for found in load_results(result.run.path).runs] == [result.run.name]


def target(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda document: change(document["targets"][1])


def speed(key: str, value: Any) -> Change:
    return target(lambda one: one["figures"]["samples_per_second"].update({key: value}))


def series(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda document: change(document["candidates"][0]["series"])


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("bench", lambda document: document.pop("targets"), "targets: is missing"),
        ("bench", lambda document: document["targets"].insert(0, 5), "targets.0: must be an object"),
        ("bench", target(lambda one: one.pop("peaks")), "targets.1.peaks: is missing"),
        (
            "bench",
            target(lambda one: one["figures"]["samples_per_second"].update(low="fast")),
            "samples_per_second.low",
        ),
        ("bench", target(lambda one: one["figures"]["samples_per_second"].update(high=-1.0)), "greater than 0"),
        ("bench", target(lambda one: one["figures"]["samples_per_second"].update(low=float("nan"))), "NaN is no JSON"),
        ("parity", series(lambda one: one["loss"].pop()), "series loss has 39 values for 40 steps"),
        ("parity", series(lambda one: one["loss"].insert(3, float("inf"))), "Infinity is no JSON number"),
        ("parity", lambda document: document["candidates"][0].update(verdict="fine"), "verdict"),
        ("parity", lambda document: document.update(candidates=[]), "candidates"),
        ("whole", lambda document: document["sides"][0]["seconds"].pop("low"), "sides.0.seconds.low: is missing"),
    ],
)
def test_a_document_that_is_not_as_its_schema_says_is_left_out(
    kind: str, change: Change, reason: str, bench_result: dict[str, Any], tmp_path: Path
) -> None:
    document = {"bench": copy.deepcopy(bench_result), "parity": parity(), "whole": end_to_end_run()}[kind]
    change(document)
    (tmp_path / "damaged.json").write_text(json.dumps(document), encoding="utf-8")
    (tmp_path / "good.json").write_text(json.dumps(parity()), encoding="utf-8")
    results = load_results(tmp_path)
    assert results.count == 1
    assert reason in reasons(results)["damaged.json"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"schema": "isotrain.be', "truncated"),
        (b'{"schema": "isotrain.bench/2", hello', "odd.json:1: not valid JSON"),
        (b'{"schema": "isotrain.bench/2", "a": "\xff\xfe"}', "UTF-8"),
        (b'{"schema": ["isotrain.bench/2"]}', "is none of"),
        (b'{"schema": "isotrain.bench/2", "a": ' + b"[" * 100_000, "nested"),
        (b'{"schema": "isotrain.bench/2", "a": ' + b"1" * 5000, "5,000 digits"),
    ],
)
def test_a_damaged_result_is_left_out_with_the_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_bytes(content)
    write_run(tmp_path / "run", steps=3)
    assert reason in reasons(load_results(tmp_path))["odd.json"]


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xfe{}", b"[1, 2]", b"[" * 100_000, b'{"schema": "other/1"}'])
def test_a_file_of_other_people_is_no_alarm(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_bytes(content)
    write_run(tmp_path / "run", steps=3)
    results = load_results(tmp_path)
    assert not results.skipped
    assert results.foreign == (tmp_path / "odd.json",)


def test_what_isotrain_and_its_models_write_is_passed_over(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3)
    for name in (
        "run/encoder/config.json",
        "run/adapter/adapter_config.json",
        "run/checkpoints/step-1/manifest.json",
        "run/export-onnx/export.json",
        "run/labels.json",
        "moved/export.json",
        "moved/config.json",
        "moved/anything.json",
        "parity/reference/trace.json",
        "parity/reference/error-budgets/draw-0/odd.json",
        "cache/tokens/0a1b/manifest.json",
        "minilm/tokenizer_config.json",
        "minilm/special_tokens_map.json",
        "predictions.json",
        "nbest_predictions.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "doctor.json").write_text('{"schema": "isotrain.doctor/1"}')
    os.mkfifo(tmp_path / "pipe.json")
    results = load_results(tmp_path)
    assert [found.path for found in results.runs] == [run.name]
    assert (results.skipped, results.foreign) == ([], ())


def test_a_damaged_line_inside_a_runs_metrics_is_no_curve(tmp_path: Path) -> None:
    metrics = write_run(tmp_path / "good", steps=3) / "metrics.jsonl"
    damaged = write_run(tmp_path / "damaged", steps=5) / "metrics.jsonl"
    damaged.write_text(damaged.read_text().replace("{", "", 1))
    stepless = write_run(tmp_path / "stepless", steps=5) / "metrics.jsonl"
    stepless.write_text('{"loss": 1}\n' + metrics.read_text())
    found = reasons(load_results(tmp_path))
    assert found == {"damaged": "metrics.jsonl:1 is no JSON", "stepless": "metrics.jsonl:1 has no step"}


def test_a_loss_that_is_not_finite_is_a_gap(tmp_path: Path) -> None:
    metrics = write_run(tmp_path / "run", steps=3) / "metrics.jsonl"
    lines = [{"step": step, "train/loss": loss} for step, loss in ((1, 2.0), (2, "NaN"), (3, "Infinity"), (4, 1.0))]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load_results(tmp_path).runs[0].document.loss == ((1, 2.0), (2, None), (3, None), (4, 1.0))


def test_whatever_a_task_is_evaluated_by_is_read_and_no_name_leads_out_of_a_folder(tmp_path: Path) -> None:
    metrics = write_run(tmp_path / "run", steps=3) / "metrics.jsonl"
    metrics.write_text('{"step": 1, "eval/exact_match": 50.5, "eval/../../x": 1, "eval/": 2, "eval_seconds": 3}\n')
    assert load_results(tmp_path).runs[0].document.evaluations == {"exact_match": ((1, 50.5),)}


def test_nothing_to_show_is_a_user_error_that_says_what_was_seen(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        load_results(tmp_path / "nowhere")
    with pytest.raises(UserError, match="it holds no result"):
        load_results(tmp_path)
    for number in range(5):
        (tmp_path / f"{number}.json").write_text("{}")
    with pytest.raises(UserError, match=r"\(5 JSON files, such as 0\.json, are no results .*\); give a folder"):
        load_results(tmp_path)
