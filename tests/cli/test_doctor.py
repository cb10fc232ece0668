"""`isotrain doctor`: each device in a process of its own, whatever a backend does to its process."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from isotrain.conformance import doctor
from isotrain.conformance.worker import describe, open_device
from support.command import Invoke

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
    folder = tmp_path / "site"
    described = folder / "fakes-1.0.dist-info"
    described.mkdir(parents=True)
    (folder / "fake_backends.py").write_text(PACKAGE)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: fakes\nVersion: 1.0\n")
    points = "".join(f"{name} = fake_backends:{name.title()}\n" for name in NAMES)
    (described / "entry_points.txt").write_text(f"[isotrain.backends]\n{points}")
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
    monkeypatch.setattr(doctor, "examine", lambda _: [doctor.Report.model_validate(one) for one in found])
    code, out, _ = invoke("doctor")
    assert code == 1
    assert [line.split()[:2] for line in out.splitlines()[:2]] == [["cpu", "PASS"], ["npu", "FAIL"]]
    assert "a processor; kernels portable" in out
    assert "its test was killed; not run by its authors" in out
    assert "isotrain doctor -v" in out
    code, out, _ = invoke("doctor", "--verbose")
    assert code == 1
    assert "not offered: memory counters (there are none)" in out
    assert "not run by its authors" in out
    assert "kernel native: not here: no compiler" in out
    assert "matmul: ok, relative error 1e-7" in out
    assert f"fix: {'mend it ' * 30}".strip() in out, "a command is pasted whole"
    assert json.loads(invoke("doctor", "--json")[1]) == {"schema": "isotrain.doctor/1", "backends": found}


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
    assert support.available_kernels == ["portable", "compile"]
