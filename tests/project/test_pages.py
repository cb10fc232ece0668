"""What pages and workflows name is there, and a page that names what isn't fails the build of the documents."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support import pages

pytestmark = pytest.mark.core

# What is planted on a page, and what the line says that names it.
ON_A_PAGE = {
    "a link": ("[more](nowhere.md)", "links to nowhere.md, which isn't there"),
    "a heading": ("[more](parity.md#nowhere)", "links to parity.md#nowhere, and that page has no such heading"),
    "a heading of its own": ("[more](#nowhere)", "links to #nowhere, and that page has no such heading"),
    "a command": ("`isotrain trian quickstart`", "isotrain has no command trian"),
    "a program": ("```sh\nisotrian train quickstart\n```", "isotrian is no command"),
    "an option": ("`isotrain train --sett seed=1`", "No such option: --sett"),
    "an option alone": ("`--sett`", "no command has the option --sett"),
    "an option of a part": ("`isotrain parity record RUN --sett seed=1`", "No such option: --sett"),
    "an argument": ("```sh\nisotrain parity quickstart\n```", "Missing option '--candidate'"),
    "a key": ("```sh\nisotrain train quickstart --set batch_sise=8\n```", "unknown key 'batch_sise'"),
    "a key of a placeholder": ("`isotrain train CONFIG --set model_nam=FOLDER`", "there is no key model_nam"),
    "a key in a sentence": ("`batch_sise: 8`", "unknown key 'batch_sise'"),
    "a key of a section": ("`tt.math_fidelty: hifi2`", "unknown key 'tt.math_fidelty'"),
    "a value": ("`lr_scheduler_type: lineal`", "lr_scheduler_type: 'lineal' is not allowed"),
    "a recipe": ("`isotrain train bankin77`", "configuration 'bankin77' does not exist"),
    "a workload": ("`isotrain train examples/workloads/drop.py`", "there is no examples/workloads/drop.py"),
    "a candidate": ("`isotrain parity quickstart --candidate cpu:bfloat61`", "bfloat61"),
    "a target": ("`make tset`", "the Makefile has no target tset"),
    "a variable": ("`make run BANKING=FOLDER`", "the Makefile has no variable BANKING"),
    "an option of a target": ('`make storm ARGS="--only kills --trys 2"`', "no command has the option --trys"),
    "a package": ("`pip install isotrain`", "isotrain is on no package index"),
    "an extra": ("`pip install -e '.[onxn]'`", "there is no extra onxn"),
    "a module": ("`python -m isotrain.nothing`", "there is no module isotrain.nothing"),
    "tests": ("`pytest tests/parity/test_nothing.py`", "there is no tests/parity/test_nothing.py"),
    "a file": ("`kernels/nothing.py`", "no such file or folder"),
    "a name in a file": ("`nothing` in `kernels/names.py`", "kernels/names.py has no nothing"),
    "a name": ("`no_such_name`", "nothing in the code is called no_such_name"),
}
# What a workflow says, what it says instead, and the line.
IN_A_WORKFLOW = {
    "a target": ("docs.yml", "make docs TORCH=cpu", "make dosc TORCH=cpu", "the Makefile has no target dosc"),
    "a script": ("tests.yml", "bash .ci/run", "bash .ci/runs", "there is no .ci/runs"),
    "nothing": ("docs.yml", "- run: make docs TORCH=cpu", "", "none of its steps runs a command"),
    "no workflow": ("docs.yml", "jobs:", "job:", "it is no workflow: 'jobs'"),
    "a command": ("parity-gate.yml", "isotrain report", "isotrain reprot", "isotrain has no command reprot"),
    "an option in a variable": ("regression-gate.yml", "--gate 5%", "--gat 5%", "No such option: --gat"),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout whose pages, workflows and Makefile can be changed."""
    for path in pages.ROOT.iterdir():
        if path.name in ("docs", "examples", ".github"):
            shutil.copytree(path, tmp_path / path.name)
        elif path.suffix == ".md" or path.name == "Makefile":
            shutil.copy(path, tmp_path)
        elif path.name in (*pages.FOLDERS, "pyproject.toml"):
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_the_pages_and_the_workflows_name_only_what_is_there() -> None:
    assert list(pages.mistakes()) == []


def test_commands_are_found_on_every_kind_of_page() -> None:
    found = {code.place.partition(":")[0]: code for page in pages.pages() for code in pages.codes(page) if code.pasted}
    assert found.keys() >= {"README.md", "CONTRIBUTING.md", "docs/tutorial.md", "benchmarks/results/README.md"}


@pytest.mark.parametrize("planted", ON_A_PAGE)
def test_a_page_that_names_what_is_not_there_is_one_line(planted: str, tree: Path) -> None:
    text, said = ON_A_PAGE[planted]
    page = tree / "docs" / "planted.md"
    page.write_text(f"# Planted\n\nA sentence.\n{text}\n", encoding="utf-8")
    (line,) = pages.of_page(page, tree)
    assert line.startswith(f"docs/planted.md:{4 + text.startswith('```')}: ")
    assert said in line
    assert "\n" not in line


@pytest.mark.parametrize("planted", IN_A_WORKFLOW)
def test_a_workflow_that_calls_what_is_not_there_is_one_line(planted: str, tree: Path) -> None:
    name, before, after, said = IN_A_WORKFLOW[planted]
    (path,) = (path for path in pages.workflows(tree) if path.name == name and before in path.read_text())
    path.write_text(path.read_text(encoding="utf-8").replace(before, after, 1), encoding="utf-8")
    (line,) = pages.of_workflow(path, tree)
    assert line.startswith(str(path.relative_to(tree)))
    assert said in line
    assert "\n" not in line


def test_mistakes_end_the_build_of_the_documents(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "README.md").write_text("`make nothing`, `make tset`\n")
    assert pages.main(tree) == 1
    assert capsys.readouterr().out.splitlines() == [
        "README.md:1: `make nothing`: the Makefile has no target nothing",
        "README.md:1: `make tset`: the Makefile has no target tset",
    ]
    made = subprocess.run(["make", "--dry-run", "docs"], cwd=pages.ROOT, capture_output=True, text=True, check=True)
    assert 0 < made.stdout.find("python -m support.pages") < made.stdout.find("python -m mkdocs")
