"""The shape of the source tree: who imports whom, package list, lazy imports, sizes of files and folders."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePath

import pytest

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ["kernels", "backends", "albert_core", "benchmarks", "conformance", "api", "cli", "configs"]
# Batches check ids only where reading them doesn't wait for a device.
HOST_CHECK = ("kernels/packed/batch.py", ".device.type ==")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# The rooms of a folder, from the top: each imports what stands below it only, never a neighbour in its own row.
ROWS = {
    "": (("cli", "api"), ("conformance",), ("benchmarks",), ("albert_core",), ("backends",), ("kernels", "configs")),
    "albert_core": (
        ("inference",),
        ("loop",),
        ("tasks", "features"),
        ("model", "tokens", "output"),
        ("data", "runs", "workload"),
        ("config", "processes"),
        ("terminal",),
    ),
    "conformance": (
        ("test_conformance", "doctor", "table"),
        ("plugin",),
        ("run",),
        ("process", "worker"),
        ("catalogue", "messages"),
        ("device", "operations", "encoder", "training", "rates"),
        ("common",),
        ("case",),
    ),
    "benchmarks": (
        ("suites", "gpu_check"),
        ("reports",),
        ("end_to_end", "against", "tt_losses"),
        ("bench", "parity"),
        ("regression",),
        ("outcome",),
        ("harness",),
        ("baselines", "work"),
    ),
}
MOST_ROOMS = 16
# The charts are to be drawn by a library, which makes several of its rooms useless.
CROWDED = {"benchmarks/reports/html"}

Graph = dict[str, set[str]]


def imported_names(root: Path, path: Path) -> set[tuple[str, ...]]:
    """What a file imports from isotrain, anywhere in it: the parts of each name below ``isotrain``."""
    package = ("isotrain", *path.relative_to(root).parent.parts)
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            found |= {(*module, item.name) for item in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(item.name.split(".")) for item in node.names}
    return {name[1:] for name in found if name[0] == "isotrain"}


def file_of(root: Path, name: tuple[str, ...]) -> str | None:
    """The file that a name stands for. Its last part is a file, a folder, or something defined in one of them."""
    for end in range(len(name), 0, -1):
        for file in (Path(*name[:end]).with_suffix(".py"), Path(*name[:end], "__init__.py")):
            if (root / file).is_file():
                return str(file)
    return None


def graph_of(root: Path) -> Graph:
    """Each Python file of the product, as its path below `root`, and the other files that it imports."""
    graph = {}
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        imported = {file_of(root, name) for name in imported_names(root, path)}
        own = str(path.relative_to(root))
        graph[own] = {file for file in imported if file and file != own}
    return graph


def circle(graph: Graph) -> list[str]:
    """One circle of imports; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def rooms_of(graph: Graph, folder: str) -> Graph:
    """The rooms of a folder, its files and subfolders, and the other rooms that each imports."""
    rooms: Graph = {}

    def room(file: str) -> str | None:
        below = PurePath(file)
        if not below.is_relative_to(folder) or below == PurePath(folder, "__init__.py"):
            return None
        return below.relative_to(folder).parts[0].removesuffix(".py")

    for file, imported in graph.items():
        inside = room(file)
        if inside is not None:
            rooms.setdefault(inside, set()).update(
                other for other in map(room, imported) if other not in (None, inside)
            )
    return rooms


def folders_of(graph: Graph) -> list[str]:
    return sorted({str(parent) for file in graph for parent in PurePath(file).parents} - {"."})


def upwards(rooms: Graph, rows: tuple[tuple[str, ...], ...]) -> list[str]:
    """The imports among `rooms` that don't lead to a lower row."""
    row = {name: number for number, names in enumerate(rows) for name in names}
    return [f"{name} imports {other}" for name in rooms for other in sorted(rooms[name]) if row[other] <= row[name]]


GRAPH = graph_of(ROOT)


def test_no_imports_go_in_a_circle_among_files() -> None:
    assert circle(GRAPH) == []


@pytest.mark.parametrize("folder", folders_of(GRAPH))
def test_no_imports_go_in_a_circle_among_the_rooms_of_a_folder(folder: str) -> None:
    assert circle(rooms_of(GRAPH, folder)) == []


@pytest.mark.parametrize(("folder", "rows"), ROWS.items())
def test_rooms_import_downwards_only(folder: str, rows: tuple[tuple[str, ...], ...]) -> None:
    rooms = rooms_of(GRAPH, folder)
    assert set(rooms) == {name for row in rows for name in row}, "a new room gets its row in ROWS"
    assert upwards(rooms, rows) == []


def test_the_documents_name_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    # `conformance` has one row, and says itself what its rooms are.
    described_here = {folder: rows for folder, rows in ROWS.items() if folder != "conformance"}
    rooms = {str(PurePath(folder, name)) for folder, rows in described_here.items() for row in rows for name in row}
    described = {name.rstrip("/").removesuffix(".py") for name in re.findall(r"^\| `([\w/.]+)` \|", page, re.MULTILINE)}
    assert described == rooms - {"albert_core", "benchmarks"}


def test_a_folder_has_no_more_rooms_than_one_remembers() -> None:
    crowded = {folder for folder in folders_of(GRAPH) if len(rooms_of(GRAPH, folder)) > MOST_ROOMS}
    assert crowded <= CROWDED


@pytest.fixture
def planted(tmp_path: Path) -> Callable[[dict[str, str]], Graph]:
    """The graph of a tree of files, given by path and content."""

    def plant(files: dict[str, str]) -> Graph:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return graph_of(tmp_path)

    return plant


@pytest.mark.parametrize(
    "back",
    [
        "from .b import thing",
        "from . import b",
        "from isotrain.kernels import b",
        "import isotrain.kernels.b",
        "from ..kernels.b import thing",
        "def later():\n    from .b import thing",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import thing",
    ],
)
def test_a_planted_circle_of_files_is_found(planted: Callable[[dict[str, str]], Graph], back: str) -> None:
    graph = planted({"kernels/a.py": back, "kernels/b.py": "from .c import x", "kernels/c.py": "from .a import x"})
    assert set(circle(graph)) == {"kernels/a.py", "kernels/b.py", "kernels/c.py"}
    assert circle(graph | {"kernels/a.py": set()}) == []


def test_planted_imports_between_rooms_are_found(planted: Callable[[dict[str, str]], Graph]) -> None:
    graph = planted(
        {
            "kernels/__init__.py": "from .up.one import x",
            "kernels/up/one.py": "from ..down.one import x\nimport torch",
            "kernels/down/one.py": "x = 1",
            "kernels/down/two.py": "def f():\n    from ..up import two",
            "kernels/up/two.py": "",
            "backends/__init__.py": "from ..kernels import x",
        }
    )
    rooms = rooms_of(graph, "kernels")
    assert rooms == {"up": {"down"}, "down": {"up"}}
    assert circle(graph) == []
    assert set(circle(rooms)) == {"up", "down"}
    assert upwards(rooms, (("up",), ("down",))) == ["down imports up"]
    assert upwards({"a": {"b"}, "b": set()}, (("a", "b"),)) == ["a imports b"]
    assert rooms_of(graph, "") == {"kernels": set(), "backends": {"kernels"}}
    assert folders_of(graph) == ["backends", "kernels", "kernels/down", "kernels/up"]


def test_the_package_list_is_the_tree() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {"isotrain"} | {
        ".".join(("isotrain", *path.parent.relative_to(ROOT).parts))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert listed == there


def test_no_other_module_lies_in_the_root() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "setup.py"}


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
    assert {name: count for name, count in lines.items() if count > 400} == {}


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import isotrain", {"torch", "numpy", "pydantic", "transformers"}),
        (
            "import isotrain.cli.main",
            {
                *("torch", "numpy", "transformers", "datasets", "sklearn", "pydantic", "matplotlib"),
                *("isotrain.backends", "importlib.metadata"),
            },
        ),
        ("import isotrain.backends", {"torch_xla", "triton", "transformers", "datasets"}),
        (
            "import isotrain.albert_core.loop.train",
            {"transformers", "datasets", "sklearn", "wandb", "torch_xla", "matplotlib"},
        ),
    ],
)
def test_imports_are_lazy(statement: str, unwanted: set[str]) -> None:
    program = f"import sys; {statement}; print(sorted(set(sys.modules) & {unwanted!r}))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
