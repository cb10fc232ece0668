"""Files are written in one place (`albert_core/runs/files.py`), and what is imported is declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("kernels", "backends", "albert_core", "benchmarks", "conformance", "cli")
    for path in (ROOT / folder).rglob("*.py")
)
FILES = "albert_core/runs/files.py"

# Calls that write, move or flush a file, as ``x.name(...)`` or ``name(...)``.
WRITERS = {
    *("fsync", "mkstemp", "mkdtemp", "NamedTemporaryFile", "FileHandler", "copy2", "copyfile", "copytree", "move"),
    *("savez", "savez_compressed", "tofile", "save_file", "save_pretrained", "savefig", "touch", "chmod"),
    *("symlink_to", "hardlink_to", "symlink", "link", "rename", "renames"),
}
# The same as methods alone: as plain names they are this project's own.
METHODS = {"write_text", "write_bytes"}

# Where something else writes, and why that is right.
ALLOWED = {
    ("albert_core/model/encoder.py", "save_pretrained"): "into a folder that files.published publishes",
    ("albert_core/inference/export.py", "save_pretrained"): "into a folder that files.published publishes",
    ("albert_core/output/draw.py", "savefig"): "into memory",
    ("albert_core/output/trackers/wandb.py", "rename"): "sets a killed part of a W&B run aside",
    ("benchmarks/reports/terminal_comparison.py", "open"): "appends to the file of a CI service",
    ("benchmarks/harness/runner.py", "fdopen"): "a pipe to another process",
    ("conformance/worker.py", "fdopen"): "a pipe to another process",
    ("benchmarks/parity/worker.py", "fdopen"): "a pipe to another process",
    ("benchmarks/gpu_check/bundle.py", "copytree"): "into a folder that files.published publishes",
    ("benchmarks/against/pairs.py", "symlink_to"): "in a folder that this process made for itself",
    ("albert_core/runs/array_cache.py", "rename"): "takes a damaged entry out of the way",
    ("albert_core/runs/checkpoint_store.py", "rename"): "sets whole checkpoints aside, or into the trash",
    ("albert_core/model/adapters.py", "save_pretrained"): "into a folder that files.published publishes",
    ("albert_core/loop/start.py", "replace"): "sets a finished model aside",
    **{("backends/training/session.py", name): "a user's own file" for name in ("open", "fsync", "replace")},
    ("backends/host/cache.py", "mkdtemp"): "a cache for this process alone where there is no home folder",
    **{("backends/host/cache.py", name): "below the room that writes" for name in ("open", "link")},
}


def writes(source: str) -> list[str]:
    """The names of all calls in `source` that write, move or flush files."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        texts += [word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)]
        modes = [text for text in texts if isinstance(text, str) and re.fullmatch(r"[rwaxbt+]{1,3}", text)]
        if (
            name in WRITERS
            or (method and name in METHODS)
            or (name in ("open", "fdopen") and any(set(mode) & set("wax+") for mode in modes))
            # A text's replace takes two values.
            or (method and name == "replace" and len(node.args) == 1 and not node.keywords)
        ):
            found.append(name)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "path.write_text('x')",
        "(a / 'b').write_bytes(b'')",
        "open(path, 'w')",
        "path.open('ab')",
        "open(path, mode='x')",
        "os.replace(a, b); os.rename(a, b)",
        "temporary.replace(path)",
        "os.fsync(1)",
        "np.savez(path, a=a)",
        "save_file(tensors, path)",
        "logging.FileHandler(path)",
        "shutil.copy2(a, b)",
    ],
)
def test_the_check_sees_writers(source: str) -> None:
    assert writes(source)


@pytest.mark.parametrize("source", ["path.open('rb')", "text.replace('a', 'b')", "write_text(path, 'x')", "open(path)"])
def test_the_check_passes_over_readers(source: str) -> None:
    assert not writes(source)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_written_in_one_place(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    if name != FILES:
        assert [call for call in writes(path.read_text(encoding="utf-8")) if (name, call) not in ALLOWED] == []


def test_every_exception_is_still_needed() -> None:
    made = {(path.relative_to(ROOT).as_posix(), call) for path in SOURCES for call in writes(path.read_text())}
    assert {place for place in ALLOWED if place not in made} == set()


# Modules whose distribution has another name.
DISTRIBUTIONS = {"yaml": "pyyaml", "pynvml": "nvidia-ml-py", "torch_xla": "torch-xla"}
# What a declared distribution brings along as part of its own interface, and a vendor's stack from no index.
BROUGHT = {"huggingface_hub": "transformers", "markupsafe": "jinja2", "tt_torch": "", "amdsmi": ""}


def imported_modules(source: str) -> set[str]:
    """The top modules that `source` imports by absolute name, at any depth in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {item.name.partition(".")[0] for item in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"isotrain"}


def test_every_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {re.split(r"[\s<>=!;\[]", line, maxsplit=1)[0].lower() for line in lines} | {""}
    modules = set().union(*(imported_modules(path.read_text(encoding="utf-8")) for path in SOURCES))
    assert modules >= {"torch", "matplotlib", "yaml"}
    wanted = {name: BROUGHT.get(name, DISTRIBUTIONS.get(name, name)).replace("_", "-") for name in modules}
    assert {name: distribution for name, distribution in wanted.items() if distribution not in declared} == {}
