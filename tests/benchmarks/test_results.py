"""From workers' documents to a judged result: figures, gates, the published schema, the tables."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import isotrain.benchmarks
import jsonschema
import pytest
from isotrain import UserError
from isotrain.benchmarks.bench import run_bench
from isotrain.benchmarks.harness.environment import describe
from isotrain.benchmarks.harness.plan import Options, Plan, make_plan, with_quick
from isotrain.benchmarks.harness.runner import WorkerRun
from isotrain.benchmarks.outcome.build import build_result, result_path, write_result
from isotrain.benchmarks.outcome.model import Bench
from isotrain.benchmarks.outcome.upgrade import upgraded
from isotrain.benchmarks.reports.blocks import Table
from isotrain.benchmarks.reports.csv_markdown import result_markdown, rows
from isotrain.benchmarks.reports.html.loading import Found
from isotrain.benchmarks.reports.html.of_bench import throughput
from isotrain.benchmarks.reports.terminal import output_console, print_blocks
from isotrain.benchmarks.reports.views.bench import bench_view
from isotrain.benchmarks.reports.views.columns import WIDE
from isotrain.benchmarks.reports.views.plan import plan_view
from rich.console import Console

pytestmark = pytest.mark.core

OTHER_MODEL = {"name": "other", "sha256": "c" * 64, "label": "other", "random_weights": True}
Runs = Callable[..., list[WorkerRun]]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    path = Path(isotrain.benchmarks.__file__).parent / "schema" / "bench-2.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def plan() -> Plan:
    """Two targets: forward padded and forward packed."""
    return make_plan(Options(workloads=("forward",), layouts=("padded", "packed"), processes=3, blocks=3))


def built(plan: Plan, runs: list[WorkerRun], **options: Any) -> dict[str, Any]:
    return build_result(plan, runs, describe(), **options).document()


def shown(result: dict[str, Any], width: int = WIDE) -> str:
    output = io.StringIO()
    print_blocks(bench_view(Bench.model_validate(result)), Console(file=output, width=width, highlight=False))
    return output.getvalue()


def test_figures_are_work_over_time(plan: Plan, all_runs: Runs) -> None:
    entry = built(plan, all_runs(plan))["targets"][0]
    figures = entry["figures"]
    assert figures["step_seconds"]["median"] == 0.5
    assert figures["samples_per_second"]["median"] == 16.0
    assert figures["real_tokens_per_second"]["median"] == 256.0
    assert figures["padded_tokens_per_second"]["median"] == 2048.0
    assert figures["model_tflops"]["median"] == pytest.approx(0.04)
    assert figures["hardware_tflops"]["median"] == pytest.approx(0.32)
    assert entry["share_of_peak"] == pytest.approx({"model": 0.04, "hardware": 0.32})
    assert entry["n"] == 9
    assert entry["valid"]


def test_p99_needs_a_hundred_blocks(all_runs: Runs) -> None:
    few = make_plan(Options(workloads=("forward",), layouts=("padded",)))
    many = make_plan(Options(workloads=("forward",), layouts=("padded",), processes=10, blocks=10))
    times = tuple(0.4 + 0.01 * block for block in range(10))
    changes = {0: {"step_seconds": times}}
    assert built(few, all_runs(few, changes))["targets"][0]["figures"]["step_seconds"]["p99"] is None
    result = built(many, all_runs(many, changes))
    assert result["targets"][0]["figures"]["step_seconds"]["p99"] == pytest.approx(0.49)
    assert "p99" in shown(result)


def test_the_speed_is_compared_with_the_first_target(plan: Plan, all_runs: Runs) -> None:
    result = built(plan, all_runs(plan, {1: {"step_seconds": (0.1, 0.1, 0.1)}}))
    assert result["targets"][0]["relative"] is None
    relative = result["targets"][1]["relative"]
    assert relative["to"] == result["targets"][0]["label"]
    assert [relative[key] for key in ("median", "low", "high")] == pytest.approx([5.0, 5.0, 5.0])
    assert "5.00x" in shown(result)


def test_outliers_are_kept_and_named(plan: Plan, all_runs: Runs) -> None:
    runs = all_runs(plan, {0: {"step_seconds": (0.5, 0.51, 0.49)}})
    runs[0].document.step_seconds[1] = 3.0
    entry = built(plan, runs)["targets"][runs[0].target]
    assert entry["outliers"] == [[0, 1]]
    assert 3.0 in entry["processes"][0]["step_seconds"]


def test_every_state_of_a_result_fits_the_schema(
    plan: Plan, all_runs: Runs, validator: jsonschema.Draft202012Validator
) -> None:
    complete = all_runs(plan)
    died = [*complete[:-1], WorkerRun(complete[-1].target, complete[-1].process, 1.0, error="was killed by signal 9")]
    for result in (
        built(plan, complete),
        built(plan, complete[:3], interrupted=True),
        built(plan, died),
        built(plan, all_runs(plan, {1: {"reasons": ["bad"]}})),
    ):
        validator.validate(json.loads(json.dumps(result, allow_nan=False)))


def test_the_schema_refuses_what_is_no_result(plan: Plan, all_runs: Runs, validator: jsonschema.Validator) -> None:
    result = built(plan, all_runs(plan))
    for spoil in (
        lambda broken: broken.pop("config_sha256"),
        lambda broken: broken.update(valid="yes"),
        lambda broken: broken["targets"][0]["figures"].pop("model_tflops"),
        lambda broken: broken["targets"][0].pop("share_of_peak"),
        lambda broken: broken["targets"][0]["processes"][0].pop("step_seconds"),
    ):
        broken = json.loads(json.dumps(result))
        spoil(broken)
        assert not validator.is_valid(broken)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reasons": ["2 compilations inside the timed region"]}, "2 compilations inside the timed region"),
        (
            {"model": {"name": "other", "sha256": "c" * 64, "label": "other", "random_weights": True}},
            "its encoder weights are not",
        ),
        (
            {"probe": {"0": [1.0, 2.0], "1": [3.0, 4.1]}},
            "its logits differ from those of transformers' module in float32 by 2.0e-02 in relative L2 (text 1;",
        ),
        (
            {"probe": {"0": [1.0, float("nan")]}},
            "in float32 by inf in relative L2 (text 0; at most 0.0001) (process 1, 2, 3)",
        ),
        ({"step_seconds": (0.5, 0.0, 0.5)}, "a block took no time at all"),
        ({"step_seconds": (0.05, 0.05, 0.05)}, "3.2 TFLOP/s is more than the measured peak of 1"),
    ],
)
def test_a_gate_makes_its_target_invalid(plan: Plan, all_runs: Runs, changes: dict[str, Any], reason: str) -> None:
    result = built(plan, all_runs(plan, {1: changes}))
    assert result["targets"][0]["valid"]
    assert not result["targets"][1]["valid"]
    assert not result["valid"]
    assert any(reason in text for text in result["targets"][1]["reasons"])
    text = shown(result)
    assert "INVALID" in text
    assert reason in " ".join(text.split())


def test_texts_of_one_batch_size_must_be_the_same(plan: Plan, all_runs: Runs, document: Callable[..., Any]) -> None:
    data = document()["data"] | {"sha256": "d" * 64}
    result = built(plan, all_runs(plan, {1: {"data": data}}))
    assert result["targets"][1]["reasons"] == ["its texts are not those of cpu forward padded auto x8"]


def test_rounding_between_layouts_is_no_difference(plan: Plan, all_runs: Runs) -> None:
    assert built(plan, all_runs(plan, {1: {"probe": {"1": [3.0, 4.00001]}}}))["valid"]


def test_time_must_grow_with_the_batch(all_runs: Runs) -> None:
    plan = make_plan(Options(workloads=("forward",), layouts=("padded",), batch_sizes=(8, 16)))
    sound = built(plan, all_runs(plan, {1: {"step_seconds": (0.9, 0.9, 0.9)}}))
    assert sound["valid"]
    absurd = built(plan, all_runs(plan, {1: {"step_seconds": (0.4, 0.4, 0.4)}}))
    assert absurd["targets"][1]["reasons"] == ["its step takes less time than that of the smaller batch 8"]
    busy = {"environment": absurd["targets"][0]["processes"][0]["environment"] | {"contended": True}}
    excused = built(plan, all_runs(plan, {0: busy, 1: {"step_seconds": (0.4, 0.4, 0.4)}}))
    assert excused["valid"]
    assert "smaller batch 8, and other work on the machine" in excused["targets"][1]["warnings"][0]


def test_the_best_peak_of_the_run_counts_for_all(plan: Plan, all_runs: Runs, document: Callable[..., Any]) -> None:
    peaks = document()["peaks"] | {"matmul_tflops": 5.0}
    result = built(plan, all_runs(plan, {0: {"peaks": peaks}, 1: {"step_seconds": (0.05, 0.05, 0.05)}}))
    assert result["valid"]
    assert result["targets"][1]["share_of_peak"]["hardware"] == pytest.approx(3.2 / 5.0)


def test_an_interrupted_run_says_so_and_keeps_what_is_complete(plan: Plan, all_runs: Runs) -> None:
    result = built(plan, all_runs(plan)[:3], interrupted=True)
    assert result["status"] == "partial"
    assert [entry["status"] for entry in result["targets"]] == ["partial", "partial"]
    assert any("of 3 processes ran" in text for text in result["targets"][0]["warnings"])
    assert "PARTIAL" in shown(result)


def test_a_target_without_a_process_is_not_run_and_not_valid(plan: Plan, all_runs: Runs) -> None:
    only_first = [run for run in all_runs(plan) if run.target == 0]
    result = built(plan, only_first, interrupted=True)
    assert result["targets"][1]["status"] == "not run"
    assert not result["targets"][1]["valid"]
    assert "NOT RUN" in shown(result)


def test_warnings_of_single_processes_name_them(plan: Plan, all_runs: Runs) -> None:
    runs = all_runs(plan)
    late = next(run for run in runs if run.target == 0 and run.process == 1)
    late.document.warnings.append("warm-up cut by budget after 3 steps")
    runs.sort(key=lambda run: run.process)
    assert built(plan, runs)["targets"][0]["warnings"] == ["warm-up cut by budget after 3 steps (process 2)"]


def test_the_table_names_device_dtype_model_and_random_weights(plan: Plan, all_runs: Runs) -> None:
    text = " ".join(shown(built(plan, all_runs(plan))).split())
    assert "cpu (Fake CPU, 2 threads), bfloat16 (computed in float32)" in text
    assert "random:tiny (random weights)" in text
    assert "Throughput · random weights" in text
    assert "kernel auto is portable 1" in text
    assert "the vendor's figures: n/a, n/a" in text


def test_the_table_says_that_a_backend_was_never_run(plan: Plan, all_runs: Runs) -> None:
    runs = all_runs(plan)
    assert "not run by its authors" not in shown(built(plan, runs))
    device = runs[0].document.device.model_copy(update={"untested": True})
    runs = [replace(run, document=run.document.model_copy(update={"device": device})) for run in runs]
    text = " ".join(shown(built(plan, runs)).split())
    assert "Throughput · random weights · backend not run by its authors" in text


def test_quick_is_said_loudly(all_runs: Runs) -> None:
    plan = make_plan(with_quick(Options(workloads=("forward",), layouts=("padded",))))
    text = " ".join(shown(built(plan, all_runs(plan))).split())
    assert "quick: 1 process of 3 blocks at most a target; intervals are within one process" in text


@pytest.mark.parametrize(("seconds", "valid"), [(0.1, True), (0.02, False)])
def test_a_contended_peak_excuses_a_little_and_not_everything(
    plan: Plan, all_runs: Runs, document: Callable[..., Any], seconds: float, valid: bool
) -> None:
    peaks = document()["peaks"] | {"contended": True}
    result = built(plan, all_runs(plan, {0: {"peaks": peaks}, 1: {"peaks": peaks, "step_seconds": (seconds,) * 3}}))
    packed = result["targets"][1]
    assert packed["valid"] is valid
    assert any("shares of it are too high" in text for text in packed["warnings"]) is valid
    assert "other work contended that, the true peak is higher" in " ".join(shown(result).split())


def test_other_work_on_the_machine_is_said_above_the_figures(
    plan: Plan, all_runs: Runs, document: Callable[..., Any]
) -> None:
    environment = document()["environment"] | {"contended": True}
    text = " ".join(shown(built(plan, all_runs(plan, {1: {"environment": environment}}))).split())
    assert "BUSY MACHINE: other work used the CPUs while 1 of 2 targets were measured" in text
    assert "BUSY" not in shown(built(plan, all_runs(plan)))


def test_other_work_is_in_every_form_of_a_result(plan: Plan, all_runs: Runs, document: Callable[..., Any]) -> None:
    runs = all_runs(plan)
    busy = next(run for run in runs if (run.target, run.process) == (1, 2))
    environment = busy.document.environment.model_copy(update={"contended": True})
    runs[runs.index(busy)] = replace(busy, document=busy.document.model_copy(update={"environment": environment}))
    result = built(plan, runs)
    assert [target["contended_processes"] for target in result["targets"]] == [[], [2]]
    bench = Bench.model_validate(result)
    assert [(row["contended"], row["contended_processes"]) for row in rows(bench)] == [(False, 0), (True, 1)]
    lines = [line.split(" | ") for line in result_markdown(bench).splitlines() if line.startswith("|")]
    place = lines[0].index("contended")
    assert [line[place] for line in lines[2:]] == ["False", "True"]
    page = [block for block in throughput(Found("a.json", bench), "key") if isinstance(block, Table)]
    assert [row[1] for row in page[0].rows] == ["valid", "valid, contended"]


@pytest.mark.parametrize("width", [80, WIDE, 200])
def test_the_tables_keep_their_figures_at_every_width(plan: Plan, all_runs: Runs, width: int) -> None:
    text = shown(built(plan, all_runs(plan)), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "forward padded auto x8" in text
    assert "16 to 16" in text
    assert "…" not in text


def test_the_plan_is_shown_in_its_order(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    print_blocks(plan_view(plan), output_console())
    text = capsys.readouterr().out
    assert text.index(plan.targets[plan.order[0][0]].label) < text.index(plan.targets[plan.order[1][0]].label)
    assert "6 processes, each 3 blocks" in text


def test_a_result_is_written_whole_with_its_folder(plan: Plan, all_runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "result.json"
    result = built(plan, all_runs(plan))
    write_result(Bench.model_validate(result), path)
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(result))
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_where_a_result_goes(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert result_path(None, now) == Path("results/bench-20260102T030405Z.json")
    assert result_path(tmp_path, now) == tmp_path / "bench-20260102T030405Z.json"
    assert result_path(tmp_path / "mine.json", now) == tmp_path / "mine.json"
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="is a file, not a folder; choose another place"):
        result_path(tmp_path / "file" / "mine.json", now)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match=r"is a folder that ends in \.json"):
        result_path(tmp_path / "folder.json", now)


def test_a_place_that_can_not_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write everywhere but to a read-only disk, and what is asked of both is this.
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    with pytest.raises(UserError, match=f"--out 'results/.*: {re.escape(str(tmp_path))} can't be written; choose"):
        monkeypatch.chdir(tmp_path)
        run_bench(Options())


def test_joules_a_text_have_an_interval_or_a_reason(plan: Plan, all_runs: Runs) -> None:
    counted = {"source": "RAPL, 1 processor package, whole machine", "block_joules": [12.0, 24.0, 48.0]}
    result = built(
        plan, all_runs(plan, {0: {"energy": counted}, 1: {"energy": counted | {"block_joules": [1.0, 0.0, 1.0]}}})
    )
    with_joules, still = (entry["energy"] for entry in result["targets"])
    # 3 steps of 8 texts a block.
    assert with_joules["joules_per_sample"]["median"] == 1.0
    assert with_joules["joules_per_sample"]["low"] < 1.0 < with_joules["joules_per_sample"]["high"]
    assert with_joules["n"] == 9
    assert still["joules_per_sample"] is None
    assert still["source"] == "unavailable: the counter stood still during a block"
    text = " ".join(shown(result).split())
    assert "energy of cpu: RAPL, 1 processor package, whole machine" in text
    assert "energy of cpu: unavailable: a test" in " ".join(shown(built(plan, all_runs(plan))).split())


def test_every_target_has_its_place_under_the_roof(plan: Plan, all_runs: Runs) -> None:
    result = built(plan, all_runs(plan))
    roofline = result["targets"][0]["roofline"]
    assert roofline["intensity_flop_per_byte"] == pytest.approx(1.6e11 / 2e7)
    assert (roofline["bound"], roofline["roof_tflops"], roofline["bandwidth_gbps"]) == ("compute", 1.0, 20.0)
    assert "Under the roof, energy · random weights" in shown(result)


def test_a_device_of_two_modes_is_named_and_its_interval_holds_both(plan: Plan, all_runs: Runs) -> None:
    runs = all_runs(plan)
    for run in runs:
        run.document.step_seconds[:] = [0.5, 0.501, 0.8] if run.process < 2 else [0.8, 0.801, 0.5]
    entry = built(plan, runs)["targets"][0]
    assert any("two groups, 500 and 800 ms a step (5 and 4 of the blocks)" in warning for warning in entry["warnings"])
    step = entry["figures"]["step_seconds"]
    assert step["low"] <= 0.51
    assert step["high"] >= 0.79


def test_a_drift_of_all_processes_is_invalid_and_one_of_them_widens_the_interval(all_runs: Runs) -> None:
    plan = make_plan(Options(workloads=("forward",), layouts=("padded", "packed"), processes=3, blocks=9))
    rising = [0.5 + 0.05 * block for block in range(9)]
    runs = all_runs(plan, {0: {"step_seconds": rising}, 1: {"step_seconds": [0.5] * 9}})
    next(run for run in runs if run.target == 1).document.step_seconds[:] = rising
    result = built(plan, runs)
    padded, packed = result["targets"]
    assert ["the device throttled" in reason for reason in padded["reasons"]] == [True]
    assert packed["valid"]
    assert "(process 1); the interval spans both" in packed["warnings"][0]
    step = packed["figures"]["step_seconds"]
    assert step["low"] <= 0.5 < 0.85 <= step["high"]


@pytest.mark.parametrize(
    "path", sorted((Path(isotrain.benchmarks.__file__).parent / "results").glob("*.json")), ids=lambda path: path.stem
)
def test_committed_results_keep_what_their_readme_promises(path: Path) -> None:
    """Valid, thorough, undisturbed, of a revision without changes, and nothing of whose machine it was."""
    text = path.read_text(encoding="utf-8")
    result = upgraded(json.loads(text))
    whole = result["schema"] == "isotrain.end-to-end/2"
    schema = path.parents[1] / "schema" / ("end-to-end-2.json" if whole else "bench-2.json")
    jsonschema.Draft202012Validator(json.loads(schema.read_text(encoding="utf-8"))).validate(result)
    assert result["valid"]
    assert result["status"] == "complete"
    assert not result["method"]["quick"]
    assert result["method"]["processes"] >= 3
    assert not result["environment"]["git"]["dirty"]
    for entry in result["sides" if whole else "targets"]:
        assert entry["valid"]
    if whole:
        assert not result["peaks"]["contended"]
    else:
        assert result["method"]["blocks"] >= 9
        processes = [process for entry in result["targets"] for process in entry["processes"]]
        assert not any(process["environment"]["contended"] for process in processes)
    assert not re.search(r'"[^"]*(/home/|/root/|/tmp/|/work/)', text)
