"""`isotrain doctor`: each device in a process of its own, whatever a backend does to its process."""

from __future__ import annotations

import json
import re
import time
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest
from isotrain import backends
from isotrain.backends import Backend, get_backend
from isotrain.backends.cpu import CpuBackend
from isotrain.benchmarks.harness.document import Peaks
from isotrain.conformance import doctor
from isotrain.conformance.case import Device
from isotrain.conformance.messages import Opening
from isotrain.conformance.worker import describe, measure, open_device
from support.command import Invoke
from support.packages import described

# Backends as another distribution would bring them. `late` works only where nothing of torch was used before.
PACKAGE = """
import os, signal, sys, time
from contextlib import nullcontext
import torch
from isotrain.backends import Availability, Backend, CastPolicy, DeviceInfo, MemoryUse

class Early(Backend):
    name = "early"
    @classmethod
    def probe(cls): return Availability(True, "a host in disguise")
    device = torch.device("cpu")
    def info(self): return DeviceInfo(self.name, "cpu", f"the {self.name} device")
    def cast_policy(self, dtype, *, strict=False): return CastPolicy(dtype, "float32", "float32", "float32", "float32")
    def synchronize(self, *tensors): sys.modules["torch_was_used"] = torch
    def memory(self): return MemoryUse(0, 0, "")
    def rng_state(self): return {}
    def set_rng_state(self, state): pass
    def autocast(self, policy): return nullcontext()
    def frozen_encoder(self, weights, policy, kernel="auto"): raise NotImplementedError

class Late(Early):
    name = "late"
    def __init__(self, index=None):
        super().__init__(index)
        if "torch_was_used" in sys.modules: raise RuntimeError("too late")

class Crashes(Early):
    name = "crashes"
    def synchronize(self, *tensors):
        print("the driver is on fire", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

class Hangs(Early):
    name = "hangs"
    def synchronize(self, *tensors): time.sleep(600)

class Leaves(Early):
    name = "leaves"
    def __init__(self, index=None): os._exit(0)

class Talks(Early):
    name = "talks"
    def synchronize(self, *tensors): os.write(1, b"chatter")
"""
NAMES = ("early", "late", "crashes", "hangs", "leaves", "talks")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, installed for every process that is started."""
    points = {name: f"fake_backends:{name.title()}" for name in NAMES}
    folder = described(tmp_path / "site", "fakes", "isotrain.backends", points)
    (folder / "fake_backends.py").write_text(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")


@pytest.mark.slow
@pytest.mark.usefixtures("installed", "forked_children")
def test_no_backend_changes_what_another_does() -> None:
    names = ["early", "late", "crashes", "leaves", "talks"]
    reports = {report.backend: report for report in doctor.examine(names)}
    assert list(reports) == ["early", "late", "crashes", "leaves", "talks"]
    for name in ("early", "late", "talks"):
        assert reports[name].status == "PASS", reports[name]
    for name, reason in (
        ("crashes", "its test was killed by signal 11: the driver is on fire"),
        ("leaves", "its test ended with exit code 0"),
    ):
        assert (reports[name].status, reports[name].reason) == ("FAIL", reason)
        assert reports[name].fix


@pytest.mark.slow
@pytest.mark.usefixtures("installed", "forked_children")
def test_a_test_that_hangs_is_ended_in_time() -> None:
    start = time.monotonic()
    (report,) = doctor.examine(["hangs"], time_limit=8.0)
    assert time.monotonic() - start < 300
    assert report.status == "FAIL"
    assert "took longer than 8 s" in report.reason


def test_one_line_a_device_and_details_on_demand(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        {
            "backend": "cpu",
            "status": "PASS",
            "reason": "a host",
            "fix": "",
            "checks": [{"name": "matmul", "ok": True, "detail": "relative error 1e-7"}],
            "device": {"backend": "cpu", "device": "cpu", "name": "a processor", "emulated": False},
            "bfloat16": {
                **dict.fromkeys(("requested", "param", "compute", "accumulate", "label"), "bfloat16"),
                "reason": "by hardware",
            },
            "kernels": {"native": "not here: no compiler", "portable": "available, torch operators"},
            "lacks": ["memory counters (there are none)"],
            "choices": [
                {
                    "name": "attention",
                    "shape": "12 heads of 64",
                    "way": "flash",
                    "seconds": {"triton": 2e-4, "flash": 1e-4},
                    "refused": {},
                    "source": "kept",
                }
            ],
        },
        {
            "backend": "npu",
            "status": "FAIL",
            "reason": "its test was killed",
            "fix": "mend it " * 30,
            "checks": [],
            "untested": True,
        },
    ]
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: [doctor.Report.model_validate(one) for one in found])
    code, out, _ = invoke("doctor")
    assert code == 1
    assert [line.split()[:2] for line in out.splitlines()[:2]] == [["cpu", "PASS"], ["npu", "FAIL"]]
    assert "a processor; kernels portable" in out
    assert "its test was killed; not run by its authors" in out
    assert "isotrain doctor -v" in out
    code, out, _ = invoke("doctor", "--verbose")
    assert code == 1
    assert "not offered: memory counters (there are none)" in out
    assert "chosen: attention of 12 heads of 64: flash (kept; triton 0.2 ms; flash 0.1 ms)" in out
    assert "not run by its authors" in out
    assert "kernel native: not here: no compiler" in out
    assert "matmul: ok, relative error 1e-7" in out
    assert f"fix: {'mend it ' * 30}".strip() in out, "a command is pasted whole"
    assert json.loads(invoke("doctor", "--json")[1]) == {"schema": "isotrain.doctor/1", "backends": found}


def test_a_device_that_works_says_what_its_probe_found(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "2.9.0")
    opening = Opening(status="open", reason=backends.backend_class("xla").probe().reason)
    support = describe(Device(get_backend("cpu")))
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: [doctor.opened("xla", opening, support, {})])
    code, out, _ = invoke("doctor")
    assert code == 0
    assert "; torch-xla 2.9.0 (2.9 is its last release, and backend tpu succeeds it)" in out
    # The reason of this one is its own name.
    opening = Opening(status="open", reason=CpuBackend.probe().reason)
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: [doctor.opened("cpu", opening, support, {})])
    assert opening.reason not in invoke("doctor")[1]


@pytest.mark.slow
@pytest.mark.usefixtures("installed", "forked_children")
def test_peaks_are_measured_where_they_are_asked_for(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "list_backends", lambda: ["early", "leaves"])
    monkeypatch.setattr(doctor, "examine", partial(doctor.examine, time_limit=600.0))
    code, out, _ = invoke("doctor", "-v")
    assert code == 1, "one of them can't be opened"
    [line] = [line for line in out.splitlines() if " peak in " in line]
    assert re.match(r"  early peak in float32, measured in this run: [\d.,]+ TFLOP/s, copy [\d.,]+ GB/s", line)
    assert " peak in " not in invoke("doctor")[1]


def test_a_peak_is_that_of_a_dtype_that_the_device_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def peaks(backend: Backend, dtype: str) -> Peaks:
        if dtype == "bfloat16":
            raise RuntimeError("no such product")
        return Peaks.model_construct(dtype=dtype)

    monkeypatch.setattr("isotrain.benchmarks.harness.peaks.measure_peaks", peaks)
    found = measure(Device(get_backend("cpu")))
    assert [one.dtype for one in found.peaks] == ["float32", "int8"]
    assert found.lacks == ["a peak in bfloat16 (raised RuntimeError: no such product (in peaks))"]
    emulated = measure(Device(get_backend("tt")))
    assert (emulated.peaks, emulated.lacks) == ([], []), "the host's speed is no card's"


def test_what_the_native_kernel_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from isotrain.kernels import native
    from isotrain.kernels.cpu import library

    missing = native.load("no_such_package", 1)
    monkeypatch.setattr(library, "native", lambda: missing)
    _, opened = open_device("cpu", {}, 0)
    assert opened is not None
    support = describe(opened).support
    assert support is not None
    assert "not built with this installation; install a C++ compiler" in support.kernels["native"]
    assert [name for name, state in support.kernels.items() if state.startswith("available")] == ["portable", "compile"]
