"""Standard streams that are closed or full: the work is done and kept, and where that can be said, it is."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import forks

FULL = Path("/dev/full")
JOB = (
    "train quickstart --set model_name=random:tiny --set 'dataset_id=embedded:intents?train=154&test=77' "
    "--set dtype=float32 --set num_epochs=1"
)
BENCH = (
    "bench --quick --model random:tiny --dtype float32 --workload head_step --max-length 16 --seconds 0.05 --blocks 1"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run."""
    folder = tmp_path_factory.mktemp("streams")
    assert fork(f"{JOB} --set run_name=first", folder)[0] == 0
    return folder


def fork(arguments: str, folder: Path, closed: tuple[int, ...] = (), **streams: Any) -> tuple[int, str]:
    """Exit code and what reached stderr, of a command whose process has imported everything."""
    words = ["-m", "isotrain.cli", *shlex.split(arguments)]
    result = forks.run(words, cwd=folder, closed=closed, forking=True, **({"stdout": subprocess.DEVNULL} | streams))
    return result.returncode, result.stderr


def shell(command: str, folder: Path, redirections: str) -> tuple[int, str]:
    """Exit code and what reached stderr, of a command line as a shell runs it."""
    result = subprocess.run(
        ["bash", "-c", f"{command} {redirections}"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return result.returncode, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("closed", [(0, 1, 2), (2,)])
def test_closed_streams_are_as_dev_null(folder: Path, closed: tuple[int, ...], tmp_path: Path) -> None:
    for arguments in (
        f"{JOB} --set project_dir={tmp_path} --set run_name=closed",
        f"{BENCH} --out {tmp_path}/bench.json",
        "predict runs/first hello",
        f"report runs -o {tmp_path}/report.html",
        "doctor",
    ):
        code, said = fork(arguments, folder, closed)
        # A busy machine may make a measurement invalid.
        assert code == 0 or (code == 1 and arguments.startswith("bench")), (arguments, said)
        assert "rror" not in said
    check_written(folder, tmp_path)
    assert json.loads((tmp_path / "bench.json").read_text())["status"] == "complete"


# Several commands in one process, whose exit codes are left in a file.
COMMANDS = """
import json, pathlib, shlex, sys
from isotrain.cli.main import main
codes = []
for line in sys.argv[2:]:
    try:
        main(shlex.split(line))
    except SystemExit as ended:
        codes.append(ended.code)
pathlib.Path(sys.argv[1]).write_text(json.dumps(codes))
"""


@pytest.mark.slow
def test_an_interpreter_that_starts_without_streams_imports_and_ends_well(folder: Path, tmp_path: Path) -> None:
    lines = [
        f"{JOB} --set project_dir={tmp_path} --set run_name=closed",
        "predict runs/first hello",
        f"report runs -o {tmp_path}/report.html",
        f"{BENCH} --dry-run",
        "list",
    ]
    command = shlex.join([sys.executable, "-c", COMMANDS, f"{tmp_path}/codes", *lines])
    assert shell(command, folder, "0<&- >&- 2>&-") == (0, "")
    assert json.loads((tmp_path / "codes").read_text()) == [0] * len(lines)
    check_written(folder, tmp_path)


def check_written(folder: Path, written: Path) -> None:
    """What would have been opened as file 1 or 2 has its own content, and no words of a log."""
    assert json.loads((written / "closed" / "summary.json").read_text())["status"] == "completed"
    reference = folder / "runs" / "first" / "model" / "model.safetensors"
    assert (written / "closed" / "model" / "model.safetensors").read_bytes() == reference.read_bytes()
    assert (written / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_stdout_keeps_the_work_and_says_where(folder: Path, tmp_path: Path) -> None:
    for arguments, written, word in (
        (f"{JOB} --set project_dir={tmp_path} --set run_name=full", "full/summary.json", "the run completed"),
        (f"{BENCH} --out {tmp_path}/bench.json", "bench.json", "the measurement is complete"),
        (f"report runs -o {tmp_path}/report.html", "report.html", "the report is complete"),
        (f"export runs/first --format safetensors -o {tmp_path}/export", "export", "the export is complete"),
        ("predict runs/first hello", "", "stdout can't be written"),
        ("doctor", "", "stdout can't be written"),
        ("--help", "", "stdout can't be written"),
    ):
        with FULL.open("w") as full:
            code, said = fork(arguments, folder, stdout=full)
        assert code == 1, (arguments, said)
        (error,) = [line for line in said.splitlines() if line.startswith("isotrain: error: ")]
        assert word in error
        assert "No space left on device" in error
        if written:
            assert (tmp_path / written).exists()
            assert str(tmp_path / Path(written).parts[0]) in error
        assert "Traceback" not in said
        assert "Exception ignored" not in said


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_stderr_ends_nothing(folder: Path, tmp_path: Path) -> None:
    for arguments in (
        f"{JOB} --set project_dir={tmp_path} --set run_name=mute",
        f"{BENCH} --out {tmp_path}/bench.json",
    ):
        with FULL.open("w") as full:
            code, _ = fork(arguments, folder, stderr=full)
        assert code in ((0, 1) if arguments.startswith("bench") else (0,))
    assert json.loads((tmp_path / "mute" / "summary.json").read_text())["status"] == "completed"
    assert json.loads((tmp_path / "bench.json").read_text())["status"] == "complete"


def test_an_error_is_still_told_by_its_code_where_stderr_is_closed(folder: Path) -> None:
    isotrain = shlex.join([sys.executable, "-m", "isotrain.cli"])
    assert shell(f"{isotrain} train absent.yaml", folder, "2>&-")[0] == 2
    assert shell(f"{isotrain} report absent", folder, "2>/dev/full")[0] == 2
