"""The record of where something was measured: what is readable is read, the rest says why not."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from isotrain.benchmarks.harness import environment as env


def test_the_record_is_plain_json_and_names_the_versions() -> None:
    record = json.loads(json.dumps(env.describe()))
    assert record["versions"]["torch"] == __import__("torch").__version__
    assert record["cpu"]["affinity"] == sorted(os.sched_getaffinity(0))
    assert record["cpu"]["nice"] == os.nice(0)
    assert record["host"]["memory_bytes"] > 2**28


def test_what_is_not_installed_is_said() -> None:
    assert env.versions(["no-such-package"]) == {"no-such-package": "unavailable: not installed"}


def test_an_empty_machine_gives_reasons_everywhere(tmp_path: Path) -> None:
    record = env.cpu(tmp_path, tmp_path)
    assert record["model"].startswith("unavailable: cpuinfo is not readable")
    assert record["matrix_flags"].startswith("unavailable: ")
    assert record["governor"].startswith("unavailable: scaling_governor")
    assert record["clock_mhz"].startswith("unavailable: ")
    assert record["quota_cpus"].startswith("unavailable: ")
    assert env.temperature(tmp_path).startswith("unavailable: ")


def test_model_flags_clock_governor_and_temperature_are_read(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Fake 9\nflags\t\t: fpu avx2 amx_bf16 sse\ncpu MHz\t\t: 2100.5\n\n"
        "processor\t: 1\nmodel name\t: Fake 9\nflags\t\t: fpu\ncpu MHz\t\t: 2200.0\n",
        encoding="utf-8",
    )
    governor = tmp_path / "cpu0" / "cpufreq" / "scaling_governor"
    governor.parent.mkdir(parents=True)
    governor.write_text("performance\n", encoding="utf-8")
    record = env.cpu(tmp_path, tmp_path)
    assert record["model"] == "Fake 9"
    assert record["matrix_flags"] == ["amx_bf16", "avx2"]
    assert record["clock_mhz"] == [2100.5, 2200.0]
    assert record["governor"] == "performance"
    zone = tmp_path / "thermal_zone0"
    zone.mkdir()
    (zone / "temp").write_text("41500\n", encoding="utf-8")
    (zone / "type").write_text("x86_pkg_temp\n", encoding="utf-8")
    assert env.temperature(tmp_path) == {"thermal_zone0 x86_pkg_temp": 41.5}


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000", "job/cpu.max": "150000 100000"}, 1.5),
        ("0::/job\n", {"job/cpu.max": "max 100000"}, "unlimited"),
        ("0::/not/mounted/here\n", {"cpu.max": "50000 100000"}, 0.5),
        (
            "3:cpuset:/\n1:cpuacct,cpu:/job\n0::/\n",
            {"cpu/job/cpu.cfs_quota_us": "200000", "cpu/job/cpu.cfs_period_us": "100000", "cpu/cpu.cfs_quota_us": "-1"},
            2.0,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "unlimited"),
        ("0::/job\n", {}, "unavailable: no control group says it"),
    ],
)
def test_the_tightest_quota_of_the_control_groups_counts(
    tmp_path: Path, groups: str, limits: dict[str, str], expected: float | str
) -> None:
    proc, mounted = tmp_path / "proc", tmp_path / "cgroup"
    for path, text in {
        proc / "self" / "cgroup": groups,
        **{mounted / name: text for name, text in limits.items()},
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert env.quota_cpus(proc, mounted) == expected


def test_git_says_revision_and_dirt_and_an_installed_copy_is_no_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    if env.git_state(tmp_path) == "unavailable: git is not installed":
        pytest.skip("git is not installed")
    assert env.git_state(tmp_path) == "unavailable: not a git checkout"
    git("init")
    assert env.git_state(tmp_path) == "unavailable: the checkout has no commit yet"
    (tmp_path / "file").write_text("1", encoding="utf-8")
    git("add", "file")
    git("commit", "-m", "first")
    state = env.git_state(tmp_path)
    assert isinstance(state, dict)
    assert len(state["revision"]) == 40
    assert state["dirty"] is False
    (tmp_path / "file").write_text("2", encoding="utf-8")
    assert env.git_state(tmp_path)["dirty"] is True
    inside = tmp_path / "venv" / "isotrain"
    inside.mkdir(parents=True)
    assert env.git_state(inside) == "unavailable: not a git checkout"


@pytest.mark.parametrize(
    ("switches", "waited", "contended"), [(20, 0.01, False), (400, 0.01, True), (20, 0.3, True), (0, 0.0, False)]
)
def test_other_work_shows_in_switches_or_in_waiting(switches: int, waited: float, contended: bool) -> None:
    """Two threads over one second: a few processes take turns often, many of them seldom and for long."""
    before = env.Lost(7, 1.0)
    after = env.Lost(before.switches + switches, before.seconds + waited)
    assert env.is_contended(before, after, 1.0, 2) is contended


def test_waiting_is_read_of_every_thread(tmp_path: Path) -> None:
    for number, text in enumerate(("5 1500000000 3", "5 500000000 3", "")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "schedstat").write_text(text)
    assert env.lost(tmp_path).seconds == 2.0
    assert env.lost(tmp_path / "nothing").seconds == 0.0
