"""`isotrain train --profile`: a trace that Perfetto reads, and what a step's parts and operators cost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from support.command import Invoke, one_line_error
from support.workloads import write_workload


def trained(invoke: Invoke, folder: Path, *words: str) -> str:
    keys = ["model_name=random:tiny", "dtype=float32", "run_name=run", f"project_dir={folder}", "batch_size=8"]
    code, out, err = invoke("train", "quickstart", *words, *(part for key in keys for part in ("--set", key)))
    assert code == 0, err
    return out


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        (["freeze_encoder=false"], ["copy", "encoder", "head", "backward", "optimizer"]),
        (["feature_cache=false", "fused_head=false"], ["copy", "encoder", "backward", "optimizer"]),
        ([], ["copy", "fused head step"]),
    ],
)
def test_a_profile_names_the_parts_of_a_step(invoke: Invoke, tmp_path: Path, keys: list[str], parts: list[str]) -> None:
    sets = [part for key in (*keys, "max_steps=14") for part in ("--set", key)]
    printed = trained(invoke, tmp_path, "--profile", "2", *sets)
    (folder,) = (tmp_path / "run").glob("profile-*")
    assert folder.name == "profile-00000012"
    found = json.loads((folder / "operators.json").read_text())
    assert found["steps"] == 2
    assert [cost["name"] for cost in found["ranges"] if cost["name"] != "fence"] == parts
    assert all(cost["calls"] == 1 for cost in found["ranges"] if cost["name"] not in ("fence", "copy", "encoder"))
    trace = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    named = {event.get("name") for event in trace["traceEvents"]}
    assert named >= {*parts, "[memory]"}
    assert "Operators, without those they call" in printed
    assert str(folder) in printed.replace("\n", "")


def test_a_profile_names_the_parts_of_a_workloads_step(invoke: Invoke, tmp_path: Path) -> None:
    keys = ["run_name=run", f"project_dir={tmp_path}", "max_steps=3", "dtype=float32"]
    code, _, err = invoke(
        *("train", write_workload(tmp_path), "--profile", "1"), *(part for key in keys for part in ("--set", key))
    )
    assert code == 0, err
    (found,) = (tmp_path / "run").glob("profile-*/operators.json")
    ranges = [cost["name"] for cost in json.loads(found.read_text())["ranges"]]
    assert ranges == ["copy", "loss", "backward", "optimizer", "fence"]


def test_a_report_shows_the_profile(invoke: Invoke, tmp_path: Path) -> None:
    trained(invoke, tmp_path, "--profile", "1", "--set", "max_steps=3")
    code, _, err = invoke("report", str(tmp_path), "-o", str(tmp_path / "page.html"))
    assert code == 0, err
    page = (tmp_path / "page.html").read_text()
    assert "Profile of 1 step: to step 3 of run" in page
    assert "Parts of a step" in page


def test_a_run_that_is_too_short_is_profiled_as_far_as_it_goes(invoke: Invoke, tmp_path: Path) -> None:
    trained(invoke, tmp_path, "--profile", "5", "--set", "max_steps=4")
    (folder,) = (tmp_path / "run").glob("profile-*")
    assert json.loads((folder / "operators.json").read_text())["steps"] == 4


@pytest.mark.parametrize("steps", ["0", "-1", "101"])
def test_a_number_out_of_range_is_refused(invoke: Invoke, tmp_path: Path, steps: str) -> None:
    result = invoke("train", "quickstart", "--profile", steps, "--set", f"project_dir={tmp_path}")
    one_line_error(result, f"--profile {steps} is out of range; allowed is 1 to 100")
    assert list(tmp_path.iterdir()) == []
