"""`isotrain history` on simulated series: it finds the step, tells the creep, and is silent about noise."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isotrain.benchmarks.harness.environment import describe
from isotrain.benchmarks.harness.plan import Options, make_plan
from isotrain.benchmarks.outcome.build import build_result
from isotrain.benchmarks.regression.changes import fit
from isotrain.benchmarks.regression.history import load_history
from isotrain.benchmarks.reports.terminal_history import print_history
from isotrain.cli.commands.history import history
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

pytestmark = pytest.mark.core

Spoil = Callable[[int, dict[str, Any]], object]
REVISIONS = 30
# The beginning of dim text on a terminal.
DIM = "\x1b[2m"


@pytest.fixture
def folder(all_runs: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """`folder(series, spoil)`: a result a revision, with one target of each series of speeds."""
    plan = make_plan(Options(workloads=("forward",), layouts=("padded",), processes=1, blocks=3))
    first = build_result(plan, all_runs(plan), describe()).document()

    def write(series: Sequence[np.ndarray], spoil: Spoil = lambda *_: None) -> Path:
        for revision in range(len(series[0])):
            result = copy.deepcopy(first)
            (target,) = result["targets"]
            result["created"] = f"2026-01-{revision + 1:02}T00:00:00+00:00"
            result["environment"]["git"] = {"revision": f"{revision:02}" * 20, "dirty": False, "changed_files": 0}
            result["targets"] = []
            for place, speeds in enumerate(series):
                one = copy.deepcopy(target) | {"config_sha256": f"{place:064x}"[::-1]}
                speed = float(speeds[revision])
                one["figures"]["samples_per_second"] = {"median": speed, "low": speed * 0.99, "high": speed * 1.01}
                for process in one["processes"]:
                    process["step_seconds"] = [one["work"]["samples"] / speed] * 3
                result["targets"].append(one)
            spoil(revision, result)
            (tmp_path / f"{revision}.json").write_text(json.dumps(result), encoding="utf-8")
        return tmp_path

    return write


def noise(seed: int, length: int = REVISIONS) -> np.ndarray:
    return 100.0 * np.exp(0.02 * np.random.default_rng(seed).standard_normal(length))


def step(at: int, seed: int = 0, factor: float = 1 / 1.08) -> np.ndarray:
    return noise(seed) * np.where(np.arange(REVISIONS) < at, 1.0, factor)


def run(folder: Path, *options: str, width: int = 80) -> Any:
    app = Typer()
    app.command()(history)
    return CliRunner().invoke(app, [str(folder), *options], env={"COLUMNS": str(width)})


def courses(folder: Path) -> list[dict[str, Any]]:
    return json.loads(run(folder, "--json").stdout)["targets"]


def contend(revisions: Sequence[int]) -> Spoil:
    def spoil(revision: int, result: dict[str, Any]) -> None:
        for target in result["targets"]:
            target["processes"][0]["environment"]["contended"] = revision in revisions

    return spoil


def test_a_step_is_found_where_it_is(folder: Callable[..., Path]) -> None:
    places = [int(np.random.default_rng(seed).integers(3, REVISIONS - 2)) for seed in range(20)]
    found = courses(folder([step(at, seed) for seed, at in enumerate(places)]))
    near = [
        any(abs(int(one["at"]["revision"][:2]) - at) <= 1 and 0.89 < one["factor"] < 0.96 for one in course["steps"])
        for course, at in zip(found, places, strict=True)
    ]
    assert sum(near) >= 19
    assert sum(course["worse"] for course in found) >= 19


def test_a_creep_is_told_against_the_first_and_the_best(folder: Callable[..., Path]) -> None:
    creeping = [noise(seed) * 0.99 ** np.arange(REVISIONS) for seed in range(20)]
    found = courses(folder(creeping))
    assert sum(course["creep"] == pytest.approx(0.99, abs=0.002) for course in found) >= 19
    assert [course["of_best"] for course in found] == pytest.approx([0.99**29] * 20, abs=0.04)
    output = run(folder(creeping[:1])).output
    assert "slower: it creeps by -1." in output or "slower: it creeps by -0.9% a result over 30 results" in output
    assert "x the first, 0.7" in output


def test_most_steps_are_found_wherever_they_are() -> None:
    places = [int(np.random.default_rng(seed).integers(3, REVISIONS - 2)) for seed in range(100)]
    found = [fit(step(at, seed).tolist(), 0.03).splits for seed, at in enumerate(places)]
    near = [any(abs(split - at) <= 1 for split in splits) for splits, at in zip(found, places, strict=True)]
    assert sum(near) >= 95


@pytest.mark.parametrize("outliers", [0.0, 0.07])
@pytest.mark.parametrize("length", [12, REVISIONS, 100])
def test_noise_is_no_change(length: int, outliers: float) -> None:
    alarms = 0
    for seed in range(200):
        low = np.random.default_rng(9000 + seed).random(length) < outliers
        alarms += len(fit((noise(5000 + seed, length) * np.where(low, 0.86, 1.0)).tolist(), 0.03).levels) > 1
    assert alarms <= 10, "at most 5 % of 200 series"


@pytest.mark.parametrize(("factor", "code"), [(1 / 1.08, 1), (1.08, 0), (1.0, 0)])
def test_a_change_for_the_worse_fails_on_demand(folder: Callable[..., Path], factor: float, code: int) -> None:
    results = folder([step(25, 3, factor)])
    for shown_as in ("table", "csv", "markdown", "json"):
        ended = run(results, "--fail-on-change", "--format", shown_as)
        assert ended.exit_code == code
        assert ("slower since " in ended.stderr) == (code == 1)
    assert run(results).exit_code == 0


def test_a_slowdown_that_was_mended_does_not_fail(folder: Callable[..., Path]) -> None:
    speeds = step(10, 1, 0.8)
    speeds[20:] /= 0.8
    ended = run(folder([speeds]), "--fail-on-change")
    assert ended.exit_code == 0
    assert ["slower" in ended.output, "faster" in ended.output] == [True, True]


def test_contended_results_are_no_base_and_no_change(folder: Callable[..., Path]) -> None:
    disturbed = [5, *range(25, 30)]
    speeds = noise(4)
    speeds[disturbed] *= 0.5
    ended = run(folder([speeds], contend(disturbed)), "--fail-on-change")
    assert ended.exit_code == 0
    assert ended.output.count("contended") == len(disturbed)
    rows = json.loads(run(folder([speeds], contend(disturbed)), "--json").stdout)["rows"]
    assert [place for place, row in enumerate(rows) if row["contended"]] == disturbed
    assert rows[5]["change_median"] == ""
    assert rows[6]["change_median"] == pytest.approx(speeds[6] / speeds[4])
    assert run(folder([speeds]), "--fail-on-change").exit_code == 1, "the same speeds undisturbed"


def test_contended_results_are_dim(folder: Callable[..., Path]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", record=True, width=120)
    print_history(load_history(folder([noise(4)], contend([5]))), console)
    course, row = (line for line in console.export_text(styles=True).splitlines() if DIM in line)
    assert "contended" in row
    blocks = course.partition("  ")[0].strip()
    assert (blocks.index(DIM), blocks.count(DIM)) == (5, 1)


@pytest.mark.filterwarnings("error")
def test_where_every_result_is_contended_nothing_is_judged(folder: Callable[..., Path]) -> None:
    ended = run(folder([step(15)], contend(range(REVISIONS))), "--fail-on-change", "--json")
    assert ended.exit_code == 0
    (course,) = json.loads(ended.stdout, parse_constant=pytest.fail)["targets"]
    assert (course["comparable"], course["lacking"], course["steps"]) == (0, 12, [])
    assert (course["of_first"], course["of_best"], course["worse"]) == (1.0, 1.0, False)


def test_too_few_results_are_said(folder: Callable[..., Path]) -> None:
    output = run(folder([step(6)[:10]]), "--fail-on-change").output
    assert "too few to find a change: 2 more needed" in output


def test_what_else_changed_is_told(folder: Callable[..., Path]) -> None:
    def renew(revision: int, result: dict[str, Any]) -> None:
        environment = result["environment"]
        environment["versions"]["torch"] = "2.9.0" if revision < 15 else "2.10.0"
        environment["cpu"]["governor"] = "powersave" if revision < 20 else "unavailable: not readable"
        result["targets"][0]["processes"][0]["environment"]["threads"]["intra_op"] = 2 if revision < 29 else 4

    results = folder([step(15, 2, 0.8)], renew)
    output = run(results).output
    assert "slower since 1515151515 (2026-01-16 00:00): 0.8" in output
    assert "torch changed, too" in " ".join(output.split())
    assert "environment since 1515151515 (2026-01-16 00:00): torch 2.9.0 -> 2.10.0" in output
    assert "threads 2 -> 4" in output
    assert "governor" not in output, "what was not recorded is no change"
    assert max(map(len, output.splitlines())) <= 80
    rows = json.loads(run(results, "--json").stdout)["rows"]
    assert [row["environment_change"] for row in rows if row["environment_change"]] == [
        "torch: 2.9.0 -> 2.10.0",
        "threads: 2 -> 4",
    ]
