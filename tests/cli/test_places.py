"""Folders that are gone, full, or have names that a shell would take apart."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Invoke


def test_a_current_folder_that_was_removed_is_said_to_be(tmp_path: Path) -> None:
    command = f"mkdir gone && cd gone && rmdir ../gone && {shlex.quote(sys.executable)} -m isotrain.cli list"
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stderr == "isotrain: error: the current folder was removed; change to one that is there\n"


@pytest.mark.parametrize(
    "arguments", ["train small.yaml --set project_dir=full/x", "report runs -o r.html --png full/x"]
)
def test_a_full_disk_where_a_folder_is_to_be_made_is_a_failure(
    invoke: Invoke, small_run: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    made = Path.mkdir

    def on_a_full_disk(path: Path, *args: int, **options: bool) -> None:
        if path.parts[-2:] == ("full", "x"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        made(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", on_a_full_disk)
    code, _, err = invoke(*arguments.split())
    assert code == 1, err
    assert err.splitlines()[-1].endswith("full/x (No space left on device); free space or choose another disk")


def test_a_full_disk_that_no_writer_has_words_for_is_a_failure(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    monkeypatch.setattr("isotrain.cli.main._built", lambda: refuse)
    code, _, err = invoke("list")
    assert code == 1, err
    assert "No space left on device" in err


def _without_manifest(run: Path) -> None:
    (run / "manifest.json").unlink()


def _with_another_configuration(run: Path) -> None:
    with (run / "config.yaml").open("a") as file:
        file.write("# by hand\n")


def _without_model(run: Path) -> None:
    (run / "model" / "model.safetensors").unlink()


@pytest.mark.parametrize("harm", [_without_manifest, _with_another_configuration, _without_model])
def test_a_printed_command_names_a_folder_as_a_shell_takes_it(
    invoke: Invoke, small_run: Path, harm: Callable[[Path], None]
) -> None:
    run = small_run.rename(small_run.with_name("it's; my $RUN"))
    harm(run)
    code, _, err = invoke("predict", str(run), "hello")
    assert code == 2
    assert f"train --resume {shlex.quote(str(run))}" in err
