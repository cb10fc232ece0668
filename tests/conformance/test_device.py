"""The checks of the group "device" are judged themselves: each broken device is caught by the check of its clause."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from typing import Any, cast

import pytest
import torch
from isotrain import UserError
from isotrain.backends import Availability, BackendUnavailableError, get_backend
from isotrain.backends.cpu import CpuBackend
from isotrain.benchmarks.outcome.conformance import Judged
from isotrain.conformance import device
from isotrain.conformance.case import Device
from isotrain.conformance.device import counting, waiting
from isotrain.conformance.worker import describe, judge, open_device
from isotrain.kernels import plugins
from support.mutated_device import MUTANTS, Mutant

CASES = device.cases()


@pytest.fixture(autouse=True)
def _small_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "WIDTH", 128)
    monkeypatch.setattr(counting, "ENERGY_SECONDS", 0.2)


def found_on(backend: Any, seed: int = 0) -> dict[str, Judged]:
    return {case.subject: judge(case, Device(backend, seed)) for case in CASES}


@pytest.mark.parametrize("kind", MUTANTS, ids=lambda kind: kind.__name__)
def test_a_broken_device_is_caught_by_its_clause_and_by_no_other(kind: type[Mutant]) -> None:
    found = found_on(kind())
    broken = {subject: judged.detail for subject, judged in found.items() if judged.status == "FAIL"}
    assert set(broken) == set(kind.CLAUSE), broken


def test_every_check_catches_a_mutant() -> None:
    assert {case.subject for case in CASES} - {subject for kind in MUTANTS for subject in kind.CLAUSE} == set()


@pytest.mark.parametrize("name", ["cpu", "tt-emulated", "ideal"])
def test_a_right_device_raises_no_alarm(name: str) -> None:
    for seed in range(3):
        found = found_on(get_backend(name), seed)
        assert {subject: judged for subject, judged in found.items() if judged.status == "FAIL"} == {}


def test_memory_that_was_freed_and_is_kept_raises_no_alarm() -> None:
    """glibc keeps what lies below memory in use, and serves even large allocations from there."""
    torch.empty(31 * 2**20, dtype=torch.uint8)  # Once freed, all that is smaller comes from the heap.
    freed = [torch.ones(2**20) for _ in range(64)]
    last = torch.ones(2**20)
    del freed
    judged = judge(next(case for case in CASES if case.subject == "memory"), Device(CpuBackend()))
    assert judged.status == "pass", judged.detail
    assert last.sum() == 2**20


def test_memory_that_stays_with_the_process_raises_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other allocators than glibc's keep what is freed for seconds."""
    kept: list[torch.Tensor] = []
    # It is called before memory is allocated, and after it was freed.
    sizes = iter((0, counting.ALLOCATED // 4))
    monkeypatch.setattr(counting, "_return_free_pages", lambda: kept.append(torch.ones(next(sizes, 0))))
    judged = judge(next(case for case in CASES if case.subject == "memory"), Device(CpuBackend()))
    assert (judged.status, judged.lacks) == ("pass", "the process keeps the memory that it has freed")


def test_a_real_width_of_work_raises_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    judged = judge(next(case for case in CASES if case.subject == "fence-work"), Device(CpuBackend()))
    assert judged.status == "pass"
    assert "until the fence" in judged.detail


def test_the_names_of_cases_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert all(case.clause.endswith(".") for case in CASES)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """installed(kind) registers a class as the backend called "npu"."""

    def register(kind: type) -> None:
        entry = EntryPoint("npu", "whatever:Npu", "isotrain.backends")
        monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == entry.group else [])
        monkeypatch.setattr(EntryPoint, "load", lambda _: kind)

    return register


class Absent(Mutant):
    @classmethod
    def probe(cls) -> Availability:
        return Availability(False, "there is no card", "plug one in")


class BadProbe(Mutant):
    @classmethod
    def probe(cls) -> Availability:
        raise RuntimeError("no driver")


class Liar(Mutant):
    def __init__(self, index: int | None = None, options: Any = None) -> None:
        raise OSError("the card doesn't answer")


class PoliteLiar(Mutant):
    def __init__(self, index: int | None = None, options: Any = None) -> None:
        raise BackendUnavailableError("the card doesn't answer; restart it")


class DictOptions(Mutant):
    Options = cast(Any, dict)


class Speechless(Mutant):
    def info(self) -> Any:
        raise KeyError("name")


@pytest.mark.parametrize(
    ("kind", "name", "status", "reason"),
    [
        (Mutant, "npu", "open", "cores"),
        (Mutant, "npu:7", "refused", "one device"),
        (Absent, "npu", "absent", "there is no card"),
        (BadProbe, "npu", "FAIL", r"raised RuntimeError: no driver \(in probe\)"),
        (Liar, "npu", "FAIL", r"raised OSError: the card doesn't answer \(in __init__\)"),
        (DictOptions, "npu", "FAIL", "the Options of backend 'npu' are no pydantic model; derive them from pydantic"),
        (PoliteLiar, "npu", "FAIL", "the probe says that it can run here, but the card doesn't answer"),
    ],
)
def test_a_backend_that_lies_about_its_availability_is_found(
    installed: Any, kind: type, name: str, status: str, reason: str
) -> None:
    installed(kind)
    opening, opened = open_device(name, {}, 0)
    assert opening.status == status
    assert re.search(reason, opening.reason)
    assert (opened is not None) == (status == "open")


@pytest.mark.parametrize(("name", "status"), [("npu", "pass"), ("cpu", "FAIL")])
def test_a_class_has_the_name_that_it_is_registered_by(
    installed: Any, monkeypatch: pytest.MonkeyPatch, name: str, status: str
) -> None:
    monkeypatch.setattr(Mutant, "name", name)
    installed(Mutant)
    _, opened = open_device("npu", {}, 0)
    assert opened is not None
    judged = judge(next(case for case in CASES if case.subject == "info"), opened)
    assert judged.status == status
    assert ("registered as 'npu', and its class has the name 'cpu'" in judged.detail) == (status == "FAIL")


@pytest.mark.parametrize("error", [ImportError("no module"), RuntimeError("no module")])
def test_a_package_that_cant_be_loaded_fails(installed: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    installed(Mutant)
    monkeypatch.setattr(EntryPoint, "load", lambda _: (_ for _ in ()).throw(error))
    opening, _ = open_device("npu", {}, 0)
    assert (opening.status, opening.fix) == ("FAIL", "repair or uninstall the package")
    assert "which can't be loaded (no module)" in opening.reason


def test_what_a_backend_says_of_itself_is_not_judged() -> None:
    said = describe(Device(get_backend("cpu"))).support
    assert said is not None
    assert said.device.backend == "cpu"
    assert not isinstance(said.dtypes["float32"], str)
    assert "allowed are float32" in str(said.dtypes["float16"])
    assert said.kernels["portable"].startswith("available")
    broken = describe(Device(Speechless()))
    assert broken.support is None
    assert broken.problem == "raised KeyError: 'name' (in info)"


def test_a_refused_dtype_is_no_error_of_the_check() -> None:
    with pytest.raises(UserError):
        CpuBackend().cast_policy("float16")
    (judged,) = [judge(case, Device(CpuBackend())) for case in CASES if case.subject == "cast-policy"]
    assert (judged.status, judged.detail) == ("pass", "float32, bfloat16, float64, int8")
