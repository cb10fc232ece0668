"""The README's and the tutorial's commands work as pasted."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from support import forks

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands_of(page: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page.replace("\\\n", ""), re.DOTALL)
    return [line.partition("  #")[0] for block in blocks for line in block.splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("minilm_folder")
@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_the_commands_of_a_page_work_one_after_the_other(tmp_path: Path, page: str) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # What --open starts.
        "BROWSER": "true",
    }
    for command in commands_of((ROOT / page).read_text(encoding="utf-8")):
        words = shlex.split(command)
        if words[0] == ".":
            continue
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
            continue
        program = shutil.which(words[0], path=environment["PATH"])
        assert program is not None, command
        # The program that pip installed, which is Python's.
        done = forks.run([program, *words[1:]], cwd=tmp_path, env=environment, forking=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert {path.name for path in tmp_path.iterdir()} >= {"runs", "results", "parity"}
    assert len(list(tmp_path.glob("*.html"))) == 1


def test_the_commands_named_in_the_readmes_table_exist() -> None:
    from isotrain.cli.main import app

    named = set(re.findall(r"`isotrain ([a-z-]+)", README))
    known = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    assert named
    assert named <= known
