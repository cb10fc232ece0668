"""What is brought along to a machine with a GPU: the folder, and the whole check started from it where little is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from isotrain import UserError
from isotrain.benchmarks.gpu_check import bundle
from isotrain.benchmarks.gpu_check.result import GpuCheck, Operators, Throughput
from isotrain.benchmarks.harness.runner import Ended
from support.forks import forked_children

BARE = ("torch", "triton", "transformers", "numpy")
# Hides what the bare machine lacks: every installed module but those whose names are given.
HOOK = """
import json, os, sys
from importlib.machinery import PathFinder

there = set(json.loads(os.environ["THERE"]))

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = super().find_spec(name, path, target)
        origin = "" if found is None else str(found.origin or next(iter(found.submodule_search_locations or []), ""))
        hidden = "/site-packages/" in origin and name.partition(".")[0] not in there
        return None if hidden else found

sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: Iterable[str], without: Iterable[str] = ()) -> set[str]:
    """The distributions `names`, and what they require without extras, but for those `without`."""
    found: set[str] = set()
    passed = set(without)
    left = list(names)
    while left:
        name = normal(left.pop())
        if name in found | passed:
            continue
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        found.add(name)
        left += [
            re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requirements if not re.search(r"extra\s*==", line)
        ]
    return found


def modules(distributions: set[str]) -> set[str]:
    """The top modules of installed `distributions`."""
    return {
        module
        for module, owners in packages_distributions().items()
        if any(normal(owner) in distributions for owner in owners)
    }


def wheel_of(folder: Path, name: str) -> None:
    """A wheel with the installed files of the distribution `name`."""
    found = distribution(name)
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{found.version}-py3-none-any.whl", "w") as wheel:
        for file in found.files or []:
            path = Path(str(file.locate()))
            if ".." not in file.parts and "__pycache__" not in file.parts and path.is_file():
                wheel.write(path, str(file))


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The processes that making a bundle starts. They only write what is expected of them."""
    started: list[tuple[str, ...]] = []

    def run(command: tuple[str, ...], spec: None, log: Path, *_: Any) -> Ended:
        started.append(command)
        log.write_text("")
        if "pip" in command:
            for name in ("pydantic", "made-up"):
                wheels = Path(command[command.index("--dest") + 1])
                wheels.mkdir(exist_ok=True)
                with zipfile.ZipFile(wheels / f"{name.replace('-', '_')}-9.9-py3-none-any.whl", "w") as wheel:
                    wheel.writestr(f"{name.replace('-', '_')}.py", "")
        else:
            (Path(command[command.index("--out") + 1])).mkdir()
        return Ended(0, 1.0, False, log)

    monkeypatch.setattr(bundle, "run_process", run)
    return started


def test_the_bundle_has_the_program_the_wheels_and_the_reference(
    processes: list[tuple[str, ...]], tmp_path: Path
) -> None:
    bundle.make_bundle(tmp_path / "new" / "bring", "3.12", True, lambda _: None)
    folder = tmp_path / "new" / "bring"
    assert sorted(path.name for path in folder.iterdir()) == ["program", "reference", "run.py", "wheels"]
    program = folder / "program" / "isotrain"
    assert (program / "cli" / "main.py").is_file()
    assert (program / "configs" / "quickstart.yaml").is_file()
    assert (program / "albert_core" / "data" / "intents.json").is_file()
    assert not (program / "benchmarks" / "results").exists()
    assert not list(program.rglob("*.so"))
    assert sum(path.stat().st_size for path in program.rglob("*")) < 8 * 2**20
    pip, record = processes
    assert pip[pip.index("--python-version") + 1] == "3.12"
    assert "--only-binary=:all:" in pip
    assert record[record.index("--dtype") + 1] == "float64"


def test_the_launcher_adds_only_what_is_not_there(processes: list[tuple[str, ...]], tmp_path: Path) -> None:
    folder = tmp_path / "bring"
    bundle.make_bundle(folder, None, True, lambda _: None)
    says = "import sys, json; print(json.dumps([sys.argv[1:], sys.path[:3]]))"
    main = folder / "program" / "isotrain" / "cli" / "__main__.py"
    main.write_text(says)
    (main.parent / "__init__.py").write_text("")
    (main.parents[1] / "__init__.py").write_text("")
    done = subprocess.run([sys.executable, folder / "run.py", "--tiny"], capture_output=True, text=True, check=True)
    arguments, paths = json.loads(done.stdout)
    assert arguments == ["gpu-check", "--reference", str(folder / "reference"), "--tiny"]
    assert paths[1:] == [str(folder / "program"), str(folder / "site")]
    assert [path.name for path in (folder / "site").iterdir()] == ["made_up.py"], "pydantic is installed here"


@pytest.mark.parametrize("fails", ["pip", "parity"])
def test_a_part_that_cannot_be_made_is_one_line_and_leaves_nothing(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: tuple[str, ...], spec: None, log: Path, *_: Any) -> Ended:
        log.write_text("first line\nERROR: No matching distribution found\n")
        return Ended(int(fails in command), 1.0, False, log)

    monkeypatch.setattr(bundle, "run_process", run)
    with pytest.raises(UserError, match=r"^--bundle: .* failed: ERROR: No matching dist.*; mend") as said:
        bundle.make_bundle(tmp_path / "bring", "3.12", True, lambda _: None)
    assert "\n" not in str(said.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_every_stage_runs_where_only_torch_and_transformers_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, show: Any
) -> None:
    carried = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in bundle.CARRIED]
    there = closure(BARE, without=carried)
    brought = closure(carried) - there
    assert "pydantic" in brought

    def download(wheels: Path, version: str) -> None:
        for name in brought:
            wheel_of(wheels, name)

    monkeypatch.setattr(bundle, "_download", download)
    folder = tmp_path / "bring"
    with forked_children():
        bundle.make_bundle(folder, None, True, lambda _: None)
    # As on a machine where they are not installed.
    launcher = folder / "run.py"
    launcher.write_text(launcher.read_text().replace("not in there", f"in {sorted(brought)!r}"))
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(tmp_path / "hook"), "THERE": json.dumps(sorted(modules(there)))}
    found = tmp_path / "found"
    done = subprocess.run(
        [sys.executable, launcher, "--backend", "cpu", "--tiny", "--seconds", "900", "--out", found],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    result = GpuCheck.model_validate_json((found / "gpu-check.json").read_bytes())
    logs = "\n".join(f"== {path}\n{path.read_text()[-2000:]}" for path in sorted(found.rglob("log-*.txt")))
    assert {stage.name: stage.status for stage in result.stages if stage.status != "passed"} == {}, logs
    assert done.returncode == 0, done.stderr
    for stage in ("throughput", "compiled"):
        assert not Throughput.model_validate_json((found / stage / "throughput.json").read_bytes()).failed
    for stage in ("operators", "compiled"):
        assert Operators.model_validate_json((found / stage / "operators.json").read_bytes()).operators
    show(f"gpu-check, every stage, tiny, bare: {sum(stage.seconds for stage in result.stages):.0f} s")
