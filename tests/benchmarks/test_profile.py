"""`isotrain bench --profile`: traces beside the result, tables in it, and no influence on what was measured before."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from support.command import Invoke, one_line_error

BENCH = ["bench", "--quick", "--seconds", "0.1", "--model", "random:tiny", "--layout", "packed", "--dtype", "float32"]


def test_each_target_has_a_trace_and_a_table(invoke: Invoke, tmp_path: Path) -> None:
    out = tmp_path / "b.json"
    workloads = ["--workload", "forward", "--workload", "full_step"]
    code, printed, err = invoke(*BENCH, *workloads, "--profile", "2", "--out", str(out))
    assert code == 0, err
    document = json.loads(out.read_text())
    parts = {"forward": ["copy", "encoder", "head"], "full_step": ["copy", "encoder", "head", "backward", "optimizer"]}
    for target in document["targets"]:
        profile = target["profile"]
        assert [cost["name"] for cost in profile["ranges"] if cost["name"] != "fence"] == parts[target["workload"]]
        trace = json.loads(gzip.decompress((tmp_path / "b-traces" / profile["trace"]).read_bytes()))
        assert {event.get("name") for event in trace["traceEvents"]} >= {*parts[target["workload"]], "[memory]"}
    assert printed.count("Profile of 2 steps: ") == 2
    code, _, err = invoke("report", str(tmp_path), "-o", str(tmp_path / "page.html"))
    assert code == 0, err
    assert "Profile of 2 steps: " in (tmp_path / "page.html").read_text()


def test_traces_need_a_result_beside_them(invoke: Invoke) -> None:
    one_line_error(invoke(*BENCH, "--profile", "2", "--json"), "give --out")
    one_line_error(invoke(*BENCH, "--profile", "101"), "--profile 101 is out of range")
