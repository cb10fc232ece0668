"""The shape of the source tree: floors, package list, lazy imports, file sizes."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ["kernels", "backends", "albert_core", "benchmarks", "cli"]
FOLDERS = [*FLOORS, "configs"]
# Batches check ids only where reading them doesn't wait for a device.
HOST_CHECK = ("kernels/packed/batch.py", ".device.type ==")
TABLES = {"albert_core/data/intents_templates.py"}
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imported_folders(path: Path) -> set[str]:
    """The top folders of isotrain that a file imports from, by relative or absolute import, at any depth in it."""
    package = ("isotrain", *path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names = (
                [(*base, *(node.module or "").split("."))]
                if node.module
                else [(*base, item.name) for item in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [tuple(item.name.split(".")) for item in node.names]
        else:
            continue
        found |= {name[1] for name in names if len(name) > 1 and name[0] == "isotrain"}
    return found & set(FOLDERS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_floors_import_downwards_only(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0]
    if floor == "configs":
        assert not imported_folders(path)
        return
    above = set(FLOORS[FLOORS.index(floor) + 1 :])
    assert not imported_folders(path) & above


def test_the_floor_check_sees_relative_and_absolute_imports(tmp_path: Path) -> None:
    probe = ROOT / "kernels" / "packed" / "batch.py"
    assert imported_folders(ROOT / "backends" / "cpu.py") >= {"kernels"}
    assert "cli" not in imported_folders(probe)


def test_the_package_list_is_the_tree() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {"isotrain"} | {
        ".".join(("isotrain", *path.parent.relative_to(ROOT).parts))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert listed == there


def test_no_other_module_lies_in_the_root() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py"}


def test_devices_are_told_apart_in_backends_only() -> None:
    telling = (
        "is_cuda",
        "torch.cuda",
        "torch_xla",
        'name == "cpu"',
        'name == "cuda"',
        'device == "',
        ".device.type ==",
    )
    offenders = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] != "backends"
        for word in telling
        if (str(path.relative_to(ROOT)), word) != HOST_CHECK
        if word in path.read_text(encoding="utf-8")
    ]
    assert not offenders


def test_files_fit_a_head() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: count for name, count in lines.items() if count > 420 and name not in TABLES} == {}


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import isotrain", {"torch", "numpy", "pydantic", "transformers"}),
        ("import isotrain.cli.main", {"torch", "numpy", "transformers", "datasets", "sklearn", "pydantic"}),
        ("import isotrain.backends", {"torch_xla", "triton", "transformers", "datasets"}),
        ("import isotrain.albert_core.loop.train", {"transformers", "datasets", "sklearn", "wandb", "torch_xla"}),
    ],
)
def test_imports_are_lazy(statement: str, unwanted: set[str]) -> None:
    program = f"import sys; {statement}; print(sorted(set(sys.modules) & {unwanted!r}))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
