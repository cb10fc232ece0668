"""The command line, run in this process and in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from isotrain.cli.main import main
from support.command import Invoke
from support.small_job import write_dataset


@pytest.fixture
def invoke(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs a command in an empty folder; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def small_run(invoke: Invoke, tmp_path: Path) -> Path:
    """A finished run of the tiny encoder."""
    write_dataset(tmp_path / "data")
    (tmp_path / "small.yaml").write_text(
        "dataset_id: ./data\nmodel_name: random:tiny\ndtype: float32\nmax_length: 32\nmlp_hidden_size: 16\n"
        "num_epochs: 2\nlearning_rate: 1.0e-2\nrun_name: small\n"
    )
    code, out, err = invoke("train", "small.yaml")
    assert code == 0, err
    assert "random weights" in out
    assert "runs/small" in out
    return tmp_path / "runs" / "small"
