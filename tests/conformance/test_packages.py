"""Backends of packages under the conformance command: whatever they do, even when they are imported, is a row."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from isotrain.conformance import doctor, table
from support.command import Invoke, one_line_error
from support.packages import described

# A package whose backend does something else in each member.
PACKAGE = """
import os, time
from isotrain.backends.cpu import CpuBackend
from isotrain.backends import BackendUnavailableError, MemoryUse
from pydantic import BaseModel, ConfigDict

class Wild(CpuBackend):
    name = "wild"
    def memory(self): os._exit(3)
    def energy(self): time.sleep(600)
    def scalar(self, value): raise KeyError("value")
    def on_host(self, module): return module

class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    streams: int = 2
    high: bool = False

class Typed(CpuBackend):
    name = "typed"
    Options = Options

class Liar(CpuBackend):
    name = "liar"
    def __init__(self, index=None): raise BackendUnavailableError("the card doesn't answer; restart it")
"""


# Modules that break as soon as they are imported, by the name of their backend: what one does, and its row.
IMPORTS = {
    "raises": (
        "raise OSError('no driver')",
        "FAIL",
        "the backend can't be opened: backend 'raises' is registered as 'raises:Wild', which can't be loaded",
    ),
    "leaves": ("import os; os._exit(3)", "crash", "while it opened the backend, the process ended with exit code 3"),
    "hangs": (
        "import time; time.sleep(600)",
        "hang",
        "while it opened the backend, the process took longer than 1 s",
    ),
}


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages, installed for every process that is started, and for this one."""
    points = {"wild": "wild_backends:Wild", "liar": "wild_backends:Liar", "typed": "wild_backends:Typed"}
    points |= {name: f"{name}:Wild" for name in IMPORTS}
    folder = described(tmp_path / "site", "wild", "isotrain.backends", points)
    (folder / "wild_backends.py").write_text(PACKAGE)
    for name, (program, _, _) in IMPORTS.items():
        (folder / f"{name}.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.slow
@pytest.mark.usefixtures("packaged", "forked_children")
def test_a_wild_backend_is_a_table_of_findings(invoke: Invoke, tmp_path: Path) -> None:
    chosen = "device/[meso][enc][mea-]*"
    code, out, err = invoke(
        "conformance", "--backend", "wild", "--only", chosen, "--json", tmp_path / "a.json", "--time-limit", "5"
    )
    assert code == 1, (out, err)
    result = table.load_conformance(tmp_path / "a.json")
    found = {one.subject: (one.status, one.detail) for one in result.checks}
    assert set(found) == {"on-host", "memory", "energy", "scalar"}
    assert found["memory"] == ("crash", "the process ended with exit code 3")
    assert found["energy"] == ("hang", "the process took longer than 5 s")
    assert found["scalar"] == ("FAIL", "raised KeyError: 'value' (in scalar)")
    assert found["on-host"] == ("FAIL", "on_host returns the module itself")
    for name in found:
        assert f"device/{name}: " in err
        assert f"device/{name}: " in out
    code, out, _ = invoke("conformance", "--backend", "liar", "--only", "place", "--against", tmp_path / "a.json")
    assert code == 1
    assert "the probe says that it can run here, but the card doesn't answer" in out
    assert "different from before" in out


@pytest.mark.slow
@pytest.mark.usefixtures("packaged", "forked_children")
@pytest.mark.parametrize("name", IMPORTS)
def test_a_module_that_cant_be_imported_is_a_row(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _, status, detail = IMPORTS[name]
    if status == "hang":
        monkeypatch.setattr("isotrain.conformance.run.OPEN_SECONDS", 1.0)
    options = ("--only", "device/place", "--json", tmp_path / "a.json", "--set", f"{name}.streams=3")
    code, out, err = invoke("conformance", "--backend", name, *options)
    assert code == 1, (out, err)
    (found,) = table.load_conformance(tmp_path / "a.json").checks
    assert (found.status, found.detail[: len(detail)]) == (status, detail)
    assert f"{found.status}: {found.detail}"[:60] in out


@pytest.mark.slow
@pytest.mark.usefixtures("packaged", "forked_children")
def test_doctor_imports_no_module_of_a_package_itself() -> None:
    reports = doctor.examine(list(IMPORTS), time_limit=15.0)
    assert [(report.backend, report.status) for report in reports] == [(name, "FAIL") for name in IMPORTS]
    said = ("which can't be loaded (no driver)", "ended with exit code 3", "took longer than 15 s")
    for report, words in zip(reports, said, strict=True):
        assert words in report.reason


@pytest.mark.usefixtures("packaged")
@pytest.mark.parametrize("command", [("train", "quickstart"), ("bench", "--quick")])
def test_other_commands_say_in_one_line_that_a_module_cant_be_imported(
    invoke: Invoke, command: tuple[str, ...]
) -> None:
    said = "'raises' is registered as 'raises:Wild', which can't be loaded (no driver); repair or uninstall"
    one_line_error(invoke(*command, "--backend", "raises"), said)


@pytest.mark.slow
@pytest.mark.usefixtures("packaged", "forked_children")
def test_options_of_a_package_are_read_where_it_is_imported(invoke: Invoke, tmp_path: Path) -> None:
    command = ("conformance", "--backend", "typed", "--only", "device/info", "--json", tmp_path / "a.json", "--set")
    code, out, err = invoke(*command, "typed.streams=3")
    assert code == 0, (out, err)
    assert table.load_conformance(tmp_path / "a.json").options == {"typed": {"streams": 3, "high": False}}
    one_line_error(invoke(*command, "typed.streams=few"), "typed.streams: 'few' is no whole number")
    one_line_error(invoke(*command, "seed=3"), "only a backend's own options")
