"""Results are described once: what is read, what is published and what is committed are the models' own."""

from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path
from typing import Any

import isotrain.benchmarks
import pytest
from isotrain.benchmarks.outcome.end_to_end import EndToEnd
from isotrain.benchmarks.outcome.load import load_result
from isotrain.benchmarks.outcome.model import Bench
from isotrain.benchmarks.outcome.parity import Parity
from isotrain.benchmarks.outcome.schemas import FOLDER, schemas
from isotrain.benchmarks.outcome.upgrade import upgraded
from pydantic import ValidationError
from support.results import end_to_end_run, parity

ROOT = Path(isotrain.benchmarks.__file__).parents[1]
COMMITTED = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
# Reads by a constant text as key, of whatever it is. Results have attributes.
MOST_READS = 35
# No results: types, the process's environment, a trace's tensors, which have the names of their file, tasks by name,
# and batches and an optimizer's groups, whose keys are torch's.
OTHERS = {"Literal", "environ", "arrays", "TASKS", "batch", "group"}


def reads(source: str) -> list[int]:
    """The lines of ``x["key"]`` and ``x.get("key")``, one each."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            value, key = node.value, node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            value, key = node.func.value, node.args[0] if node.args else None
        else:
            continue
        name = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and name not in OTHERS:
            found.append(node.lineno)
    return found


def test_results_are_read_by_attributes() -> None:
    files = [path for folder in ("benchmarks", "conformance", "cli") for path in (ROOT / folder).rglob("*.py")]
    found = Counter({str(path.relative_to(ROOT)): len(reads(path.read_text(encoding="utf-8"))) for path in files})
    assert sum(found.values()) < MOST_READS, {name: count for name, count in found.most_common() if count}


def test_the_count_sees_both_ways_of_reading_and_no_others() -> None:
    lines = ['a["x"]', 'b.get("y", 1)', 'c["z"] = 1', "d[0]", 'Literal["w"]', 'trace.arrays["v"]', 'e.f["t"]["s"]']
    assert reads("\n".join(lines)) == [1, 2, 7, 7]


def test_the_published_schemas_are_those_of_the_models() -> None:
    """Mended by ``python -m isotrain.benchmarks.outcome.schemas``."""
    assert {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()} == schemas()


def test_every_document_begins_with_its_schema() -> None:
    assert {next(iter(json.loads(text)["properties"])) for text in schemas().values()} == {"schema"}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_result_keeps_every_number_and_text(path: Path) -> None:
    before = path.read_text(encoding="utf-8")
    assert load_result(path).document() == upgraded(json.loads(before))


@pytest.mark.parametrize(("model", "document"), [(EndToEnd, end_to_end_run()), (Parity, parity())])
def test_a_result_is_written_as_it_was_read(model: Any, document: dict[str, Any]) -> None:
    assert model.model_validate(document).document() == document


def test_a_bench_result_is_written_as_it_was_read(bench_result: dict[str, Any]) -> None:
    assert Bench.model_validate(bench_result).document() == bench_result


def test_nobody_changes_a_result(bench_result: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Bench.model_validate(bench_result).targets[0].valid = True
