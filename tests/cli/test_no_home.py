"""No home folder, and caches that can't be written: a run costs more time, and says so once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from isotrain.backends.host import cache
from isotrain.backends.host.cache import cache_folder, settle_home
from support.results import write_run

JOB = ["train", "quickstart", "--set", "dataset_id=embedded:intents?train=154&test=77"]
JOB += [part for item in ("model_name=random:tiny", "dtype=float32", "num_epochs=1") for part in ("--set", item)]
# No passwd entry: what a container's unknown user has.
PROGRAM = """
import pwd, sys
def missing(*_): raise KeyError("no such user")
pwd.getpwuid = pwd.getpwnam = missing
from isotrain.cli.main import main
main(sys.argv[1:])
"""


def run(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    unset = {"HOME", "USER", "LOGNAME", "USERNAME", "HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "ISOTRAIN_CACHE"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-c", PROGRAM, *JOB, "--set", "run_name=run", *options]
    return subprocess.run(command, cwd=folder, env=environment | variables, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("named", ["", "file", "~nobody-here/cache"])
def test_a_run_goes_on_without_a_cache_and_says_so_once(tmp_path: Path, named: str) -> None:
    (tmp_path / "file").write_text("")
    # matplotlib has no cache either: it looks for fonts for seconds, so one chart is enough.
    chart = () if named else ("--set", "chart=[eval/loss]")
    result = run(tmp_path, *chart, **({"ISOTRAIN_CACHE": named} if named else {}))
    assert result.returncode == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert "ISOTRAIN_CACHE" in warnings[0]
    assert (tmp_path / "runs" / "run" / "model" / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "runs"], "and no folder called ~"


@pytest.mark.slow
def test_charts_are_drawn_without_a_cache_and_without_a_word_of_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write_run(tmp_path / "run", steps=3)
    nowhere = dict.fromkeys(("XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(tmp_path / "file" / "cache"))
    environment = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"} | nowhere
    command = [sys.executable, "-c", PROGRAM, "report", "run"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "report: report.html (2 charts)\n"


def test_a_folder_that_can_not_be_made_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISOTRAIN_CACHE", str(tmp_path / "file" / "cache"))
    assert [cache_folder("tokens"), cache_folder("features"), cache_folder("tokens")] == [None] * 3
    assert [record.getMessage().count("ISOTRAIN_CACHE") for record in caplog.records] == [1]
    monkeypatch.setenv("ISOTRAIN_CACHE", str(tmp_path / "new" / "cache"))
    assert cache_folder("tokens") == tmp_path / "new" / "cache" / "tokens"


def test_libraries_get_a_home_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(cache.atexit, "register", lambda *call, **_: given.append(call[1]))
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)
    settle_home()
    assert os.environ["HF_HOME"] == "/elsewhere"
    monkeypatch.delenv("HF_HOME")
    settle_home()
    assert given == [os.environ["HF_HOME"]]
    Path(os.environ["HF_HOME"]).rmdir()
