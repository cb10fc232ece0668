"""A device that is only emulated: named so wherever its figures go; no share of a peak, no race against others."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import isotrain.benchmarks
import jsonschema
import pytest
from isotrain import UserError
from isotrain.benchmarks.bench import VALID, run_bench
from isotrain.benchmarks.end_to_end.run import check, training_arguments
from isotrain.benchmarks.harness.environment import describe
from isotrain.benchmarks.harness.plan import Options, Plan, make_plan, with_baselines
from isotrain.benchmarks.harness.runner import WorkerRun
from isotrain.benchmarks.outcome.build import build_result
from isotrain.benchmarks.outcome.model import Bench
from isotrain.benchmarks.regression.history import load_history
from isotrain.benchmarks.reports.blocks import Block
from isotrain.benchmarks.reports.csv_markdown import result_markdown, rows, to_csv
from isotrain.benchmarks.reports.html.loading import load_results
from isotrain.benchmarks.reports.html.write import write_report
from isotrain.benchmarks.reports.terminal import print_blocks
from isotrain.benchmarks.reports.views.bench import bench_view
from isotrain.benchmarks.reports.views.columns import WIDE
from isotrain.benchmarks.reports.views.plan import plan_view
from rich.console import Console

LABEL = "tt-emulated"
DEVICE = {"backend": LABEL, "device": "cpu", "name": "wormhole emulated on Fake CPU", "emulated": True}
POLICY = {
    **dict.fromkeys(("requested", "param", "compute", "accumulate"), "float32"),
    "reason": "",
    "mode": f"{LABEL} lofi",
    "label": "x",
}


def written(blocks: list[Block], width: int = WIDE) -> str:
    output = io.StringIO()
    print_blocks(blocks, Console(file=output, width=width, highlight=False))
    return output.getvalue()


@pytest.fixture
def mixed(all_runs: Callable[..., list[WorkerRun]]) -> tuple[Plan, Bench]:
    """A result of three targets: one of the CPU, one of the emulation in the same layout, and a second of that."""
    options = Options(("cpu", LABEL), workloads=("forward",), layouts=("padded", "packed"))
    plan = make_plan(options)
    assert [spec.emulated for spec in plan.targets] == [False, False, True, True]
    told: dict[str, Any] = {"device": DEVICE, "policy": POLICY}
    return plan, build_result(plan, all_runs(plan, {2: told, 3: told | {"step_seconds": (0.1,) * 3}}), describe())


def test_every_line_about_an_emulated_target_says_so(mixed: tuple[Plan, Bench]) -> None:
    plan, result = mixed
    assert [target.label.startswith(f"{LABEL} forward") for target in result.targets] == [False, False, True, True]
    assert [target.emulated for target in result.targets] == [False, False, True, True]
    assert f"{LABEL}: every time and rate is the host's, never a card's" in result.notes[0]
    for width in (WIDE, 80):
        text = written(bench_view(result), width)
        assert f"{LABEL} (wormhole emulated on Fake CPU, 2 threads), x" in " ".join(text.split())
        assert f"energy of {LABEL}" in " ".join(text.split())
        assert f"EMULATED: {LABEL} is arithmetic on this host" in " ".join(text.split())
        # No card's name, in any table, banner, note or peak.
        assert not re.search(r"\btt\b(?!-emulated)", text)
    assert f"{LABEL}: this host's peak in float32" in written(bench_view(result))
    assert f"{LABEL} forward packed auto x8" in written(plan_view(plan))


def test_an_emulated_target_has_no_share_of_a_peak_and_races_its_own_kind_only(
    mixed: tuple[Plan, Bench],
) -> None:
    _, result = mixed
    cpu, _, first, second = result.document()["targets"]
    assert cpu["share_of_peak"]["model"] > 0
    assert first["share_of_peak"] is second["share_of_peak"] is None
    assert first["relative"] is None
    assert second["relative"]["to"] == first["label"]
    rows = [line for line in written(bench_view(result)).splitlines() if LABEL in line]
    assert any("n/a" in row for row in rows)


def test_an_emulated_target_goes_into_every_table_history_and_report_by_its_name(
    mixed: tuple[Plan, Bench], tmp_path: Path
) -> None:
    _, result = mixed
    (tmp_path / "r.json").write_text(json.dumps(result.document()), encoding="utf-8")
    labels = [target.label for target in result.targets]
    table = rows(result)
    assert [row["target"] for row in table] == labels
    assert table[0]["share_of_peak_model"] > 0
    assert table[2]["share_of_peak_model"] == ""
    for text in (to_csv(table), result_markdown(result)):
        assert labels[2] in text
    assert [row["target"] for row in load_history(tmp_path).rows()] == labels
    (found,) = load_results(tmp_path).bench
    assert [target.name for target in found.document.targets] == labels
    assert write_report(tmp_path, tmp_path / "r.html").skipped == ()


def test_coarser_numbers_of_another_mode_are_no_wrong_answer(
    all_runs: Callable[..., list[WorkerRun]],
) -> None:
    plan = make_plan(Options(("cpu", LABEL), workloads=("forward",), layouts=("padded",)))
    other = {"device": DEVICE, "probe": {"0": [1.0, 3.0], "1": [3.0, 4.0]}}
    for distance, valid in ((0.5, True), (0.4, False), (None, False)):
        changes = {1: other | {"policy": POLICY | {"largest_distance": distance}}}
        assert build_result(plan, all_runs(plan, changes), describe()).targets[1].valid is valid


def test_a_card_is_not_called_emulated() -> None:
    plan = make_plan(Options(("tt",)))
    assert plan.targets[0].label == "tt forward padded auto x8"
    assert {spec.layout for spec in plan.targets} == {"padded", "bucketed"}
    assert plan.skipped


def test_baselines_do_not_race_an_emulation() -> None:
    with pytest.raises(UserError, match=f"--vs compares speeds, and {LABEL} has only the host's"):
        make_plan(with_baselines(Options((LABEL,)), ("baselines",)))
    with pytest.raises(UserError, match=f"--vs compares speeds, and {LABEL}"):
        check(Options((LABEL,), dataset="embedded:intents", vs=("baselines",)))


def test_a_end_to_end_run_gets_what_the_backend_is_told(tmp_path: Path) -> None:
    options = Options(("tt",), backend_options={"tt": {"math_fidelity": "lofi"}}, dataset="embedded:intents")
    assert "tt.math_fidelity=lofi" in training_arguments(options, tmp_path)


def test_a_real_emulated_target_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(
        (LABEL,),
        model="random:tiny",
        workloads=("forward",),
        layouts=("packed",),
        batch_sizes=(4,),
        processes=1,
        blocks=2,
        seconds=0.1,
        threads=1,
        quick=True,
    )
    outcome = run_bench(options, out=tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert outcome.code == VALID, result["targets"][0]["reasons"]
    schema = Path(isotrain.benchmarks.__file__).parent / "schema" / "bench-2.json"
    jsonschema.Draft202012Validator(json.loads(schema.read_text(encoding="utf-8"))).validate(result)
    (entry,) = result["targets"]
    assert entry["emulated"] is entry["device"]["emulated"] is True
    assert entry["backend"] == entry["device"]["backend"] == LABEL
    assert entry["device"]["name"].startswith("wormhole emulated on ")
    assert LABEL in entry["policy"]["label"]
    assert entry["kernel_used"]["name"] == "tt-emulated"
    assert f"[1/1] {LABEL} forward packed auto x4" in capsys.readouterr().err
