"""Every command of the pages works as pasted. What can't run here says why; test_pages.py checks its words."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import isotrain
import pytest
import torch
from support import forks, own_modules, pages
from support.pages import ROOT, codes
from support.small_questions import write_questions
from support.small_recipes import RECIPES, recipe_settings

PAGES = [path for path in pages.pages() if any(code.pasted for code in codes(path))]
# They run as they stand, with pretrained weights.
AS_THEY_STAND = ("README.md", "docs/tutorial.md")
# Beginnings of commands that aren't run here, and why.
NOT_RUN = {
    "make ": "installs an environment, or is a suite of its own",
    ".venv/bin/pip ": "needs the package index",
    "isotrain gpu-check --bundle ": "needs the package index; tests/benchmarks/test_gpu_bundle.py does it without one",
    "python3 bring/run.py ": "the folder comes from the command before; tests/benchmarks/test_gpu_bundle.py starts it",
    "isotrain bench --against ": "needs another revision; tests/project/test_workflows.py runs it on a folder",
    "isotrain bench --workload end_to_end ": "needs baselines that aren't installed, and hours",
    "isotrain bench --vs ": "needs baselines that aren't installed, and hours",
    "isotrain bench --workload full_step --vs ": "half an hour; tests/benchmarks/test_trainer_baseline.py has less",
    "isotrain parity banking77 --candidate xla": "needs the XLA environment; tests/xla has the same",
}
# What a small run keeps of a recipe's small job.
KEPT = ("dataset_id", "model_name", "max_length", "max_steps", "num_labels", "doc_stride")
STEPS = 2
# What the reader would fill in, or has: its stand-in.
STAND_INS = {"DIR": "results", "cuda": "cpu"}
# What a command is given so that it is small, or finds nothing but what is here.
ALSO = {
    "isotrain bench": "--quick --seconds 0.2 --model random:tiny --layout packed",
    "isotrain bench my_model.py:TinyGPT": "--quick --seconds 0.2",
    "isotrain conformance": "--only device/place",
    "isotrain tt-losses": f"--steps {STEPS}",
    "isotrain parity": f"--steps {STEPS}",
    "isotrain parity compare": "",
    "pip install": "--quiet --no-index --no-build-isolation --target site",
}
# A comparison of so few blocks may be inconclusive; a figure measured beside other tests may be invalid.
ENDS = {"isotrain compare": (0, 3), "isotrain bench": (0, 1)}


@pytest.fixture(scope="module")
def small_jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """`--set KEY=VALUE` by the name of a recipe: small data and a tiny model instead of the published ones."""
    folder = tmp_path_factory.mktemp("jobs")
    chosen = {name: recipe_settings(name, folder / name, max_steps=STEPS) for name in RECIPES}
    return {
        name: [part for item in items if item.partition("=")[0] in KEPT for part in ("--set", item)]
        for name, items in chosen.items()
    }


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory, small_jobs: dict[str, list[str]]) -> Path:
    """A folder with what pages take for granted: results, a run, a module, questions, the examples."""
    folder = tmp_path_factory.mktemp("furnished")
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copy(own_modules.__file__, folder / "my_model.py")
    shutil.copy(write_questions(folder / "squad") / "dev.json", folder / "dev-v1.1.json")
    for name in ("before.json", "after-2.json"):
        start(f"isotrain bench --workload forward {ALSO['isotrain bench']} --out {name}", folder)
    start(shlex.join(["isotrain", "train", "quickstart", *small_jobs["quickstart"], "--set=run_name=my-run"]), folder)
    (folder / "results").mkdir()
    for name in ("after.json", "results/bench.json"):
        shutil.copy(folder / "before.json", folder / name)
    return folder


def start(command: str, folder: Path) -> None:
    """Runs a command as a shell with the environment active would."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "BROWSER": "true"}
    if (folder / "site").is_dir():
        environment["PYTHONPATH"] = os.pathsep.join([str(folder / "site"), *filter(None, [os.getenv("PYTHONPATH")])])
    words = shlex.split(command)
    program = shutil.which(words[0], path=environment["PATH"])
    assert program is not None, command
    if words[0] == "pip":
        done = subprocess.run([program, *words[1:]], cwd=folder, capture_output=True, text=True, check=False)
    else:
        # A program that pip installed is a script of Python's.
        done = forks.run([program, *words[1:]], cwd=folder, env=environment, forking=True)
    ends = ENDS.get(" ".join(words[:2]), (0,))
    assert done.returncode in ends, f"{command}\n{done.stdout}{done.stderr}"
    assert "error: " not in done.stderr, f"{command}\n{done.stderr}"


def small(command: str, folder: Path, jobs: dict[str, list[str]]) -> str:
    """The command with small data and a small model, in the place of what the reader has."""
    words = [STAND_INS.get(word, word) for word in shlex.split(command)]
    recipe = next((word for word in words if word in jobs), "")
    if "RUN" in words:
        runs = folder.glob("runs/squad-*" if "--file" in words else "runs/mrpc-*")
        words[words.index("RUN")] = str(max(runs))
    extra = ALSO.get(" ".join(words[:3]), ALSO.get(" ".join(words[:2]), ""))
    # An option that selects may be given once only.
    extra = extra.replace("--layout packed", "") if "--layout" in words else extra
    return shlex.join([*words, *shlex.split(extra), *jobs.get(recipe, [])])


def not_run(command: str) -> str:
    return next((reason for begin, reason in NOT_RUN.items() if command.startswith(begin)), "")


@pytest.mark.slow
@pytest.mark.usefixtures("minilm_folder")
@pytest.mark.parametrize("page", AS_THEY_STAND)
def test_the_commands_of_a_first_page_work_one_after_the_other(tmp_path: Path, page: str) -> None:
    for code in codes(ROOT / page):
        if code.pasted and not not_run(code.text) and not code.text.startswith(". "):
            start(code.text, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"runs", "results", "parity"}
    assert len(list(tmp_path.glob("*.html"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if str(page.relative_to(ROOT)) not in AS_THEY_STAND], ids=lambda page: page.name
)
def test_the_commands_of_a_page_work(
    page: Path, tmp_path: Path, furnished: Path, small_jobs: dict[str, list[str]]
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(furnished, folder)
    pasted = [code.text for code in codes(page) if code.pasted and not not_run(code.text)]
    # What reads a run comes after what makes it.
    for command in sorted(pasted, key=lambda text: " RUN " in text):
        start(small(command, folder, small_jobs), folder)


def test_every_reason_not_to_run_a_command_is_of_one() -> None:
    pasted = [code.text for page in PAGES for code in codes(page) if code.pasted]
    assert [begin for begin in NOT_RUN if not any(command.startswith(begin) for command in pasted)] == []


def blocks(page: str) -> list[str]:
    found = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    assert found
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("forked_children")
def test_the_python_of_its_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fewer = partial(isotrain.bench, layout="packed", workload="forward", seconds=0.2)
    tiny = partial(isotrain.parity, sets=["model_name=random:tiny"])
    own = {name: getattr(isotrain, name) for name in isotrain.__all__}
    calls = SimpleNamespace(**own | {"bench": fewer, "parity": tiny})
    batch = (torch.zeros(2, 3), torch.zeros(2, 1))

    def loss(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

    names: dict[str, Any] = {"isotrain": calls, "torch": torch, "partial": partial, "loss": loss}
    names |= {"model": torch.nn.Linear(3, 1), "batch": batch, "another": batch}
    for block in blocks("docs/python.md"):
        exec(block, names)
    assert (tmp_path / "state.pt").is_file()


@pytest.mark.slow
def test_the_python_that_loads_an_export_works(furnished: Path, tmp_path: Path) -> None:
    formats = ("transformers", "safetensors")
    for block, written in zip(blocks("docs/export.md"), formats, strict=True):
        start(f"isotrain export runs/my-run --format {written} -o {tmp_path / written}", furnished)
        names: dict[str, Any] = {"folder": str(tmp_path / written), "texts": ["I lost my card", "What is the fee?"]}
        exec(block, names)
    assert names["logits"].shape[0] == 2
