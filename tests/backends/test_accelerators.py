"""Devices by torch's names: what is said where they are absent, what they lack, and one that torch really registers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from isotrain import UserError
from isotrain.backends import (
    BackendUnavailableError,
    accelerators,
    backend_class,
    get_backend,
    is_built_in,
    list_backends,
)
from isotrain.backends.accelerators import (
    DEVICES,
    Accelerator,
    HpuBackend,
    MpsBackend,
    MusaBackend,
    NpuBackend,
    XpuBackend,
)
from support.command import Invoke
from support.packages import described

STAND_IN = Path(__file__).resolve().parents[1] / "support" / "torch_ferrite.py"


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_is_listed_and_none_was_run(name: str) -> None:
    assert name in list_backends()
    assert backend_class(name) is DEVICES[name]
    assert is_built_in(name)
    assert DEVICES[name].traits.untested
    assert DEVICES[name].traits.described.endswith("not run by its authors")


def test_a_new_device_is_one_class(monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    """Names, lists, commands and configurations know it from there."""

    class Zeta(Accelerator):
        name = "zeta"
        traits = replace(XpuBackend.traits, about="Zeta cards", process_group=None)
        how_to_get = "buy one"

    monkeypatch.setitem(DEVICES, "zeta", Zeta)
    code, out, _ = invoke("list", "backends", "--json")
    assert code == 0
    assert json.loads(out)["backends"]["zeta"] == "Zeta cards; not run by its authors"
    code, _, err = invoke("train", "quickstart", "--backend", "zeta")
    assert code == 2
    (line,) = err.splitlines()
    assert "has no module torch.zeta" in line
    assert "buy one" in line


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match=r"backend 'muse' does not exist; did you mean musa\?"):
        get_backend("muse")


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "find_spec", lambda _: None)
    with pytest.raises(BackendUnavailableError, match="the package torch_npu isn't installed; install Huawei's CANN"):
        get_backend("npu")
    # It is installed, and registered nothing.
    monkeypatch.setattr(accelerators, "find_spec", lambda name: ModuleSpec(name, None))
    with pytest.raises(BackendUnavailableError, match=r"torch \S+ has no module torch\.npu, .*AUTOLOAD"):
        get_backend("npu")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match="finds no mps device; use a Mac"):
        get_backend("mps")


@pytest.fixture
def tpu_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with torch_tpu's device, and every other device's package installed."""
    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "tpu")
    monkeypatch.setattr(accelerators, "find_spec", lambda name: ModuleSpec(name, None))
    entries = [EntryPoint(name, f"torch_{name}:load", "torch.backends") for name in ("npu", "ferrite", "tpu")]
    monkeypatch.setattr(accelerators, "entry_points", lambda group: entries if group == "torch.backends" else [])


SHARED = "can't share a process with torch device tpu, which this one uses; use a process for each"


@pytest.mark.usefixtures("tpu_open")
@pytest.mark.parametrize("name", ["npu", "mlu", "musa", "ferrite"])
def test_a_process_has_one_device_of_a_package(name: str) -> None:
    with pytest.raises(UserError) as caught:
        get_backend(name)
    assert str(caught.value).startswith(f"backend {name!r} ")
    assert str(caught.value).endswith(SHARED)


@pytest.mark.usefixtures("tpu_open")
def test_devices_of_torch_itself_need_no_place(xpu: SimpleNamespace) -> None:
    assert get_backend("xpu").device == torch.device("xpu", 0)
    with pytest.raises(BackendUnavailableError, match=r"no module torch\.hpu, which its package should register"):
        get_backend("hpu")
    with pytest.raises(UserError, match="backend 'ferrit' does not exist"):
        get_backend("ferrit")


def test_a_package_that_was_left_for_later_is_loaded_for_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("huawei", "torch_npu:load", "torch.backends")
    monkeypatch.setattr(accelerators, "entry_points", lambda group: [entry] if group == entry.group else [])
    monkeypatch.setattr(accelerators, "find_spec", lambda name: ModuleSpec(name, None))
    module = SimpleNamespace(device_count=lambda: 3)
    package = SimpleNamespace(load=lambda: monkeypatch.setattr(torch, "npu", module, raising=False))
    monkeypatch.setitem(sys.modules, "torch_npu", package)
    monkeypatch.setenv(accelerators.AUTOLOAD, "0")
    assert not NpuBackend.probe().ok, "the user has forbidden it"
    monkeypatch.setenv(accelerators.AUTOLOAD, accelerators.LATE)
    assert NpuBackend.probe().reason == "Huawei Ascend (3 devices)"
    monkeypatch.delattr(torch, "npu")
    package.load = _fail
    absent = NpuBackend.probe()
    assert "torch_npu:load, which registers a device with torch, can't be loaded (the driver is" in absent.reason
    assert "\n" not in absent.reason


@pytest.fixture
def xpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch.xpu of a machine with two GPUs, whose tensors can't exist here."""
    module = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2)
    monkeypatch.setattr(torch, "xpu", module)
    return module


def _fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("the driver is asleep\nand a stack")


def test_a_driver_that_fails_is_one_line(xpu: SimpleNamespace) -> None:
    xpu.device_count = _fail
    with pytest.raises(BackendUnavailableError, match=r"torch\.xpu doesn't work \(the driver is asleep\)") as caught:
        get_backend("xpu")
    assert "\n" not in str(caught.value)


def test_devices_are_counted_and_chosen(xpu: SimpleNamespace) -> None:
    chosen: list[int] = []
    xpu.set_device = chosen.append
    assert XpuBackend.probe().reason == "Intel GPUs (2 devices)"
    opened = get_backend("xpu:1")
    assert (opened.device, chosen) == (torch.device("xpu", 1), [1])
    with pytest.raises(UserError, match="'xpu:2': this machine has 2 XPU devices; use xpu:0 to xpu:1"):
        get_backend("xpu:2")


def test_a_module_with_nothing_is_a_device_with_gaps(xpu: SimpleNamespace) -> None:
    backend = get_backend("xpu")
    info = backend.info()
    assert (info.name, info.memory_bytes, info.untested) == ("xpu device 0", None, True)
    memory = backend.memory()
    assert memory.missing == "neither torch.xpu nor its allocator counts memory"
    assert memory.scope == "resident memory of the process"
    assert "torch.xpu has no get_rng_state" in backend.unsaved_generator()
    assert list(backend.generators()) == ["cpu"]
    with pytest.raises(UserError, match=r"torch\.xpu has no synchronize"):
        backend.synchronize()
    xpu.get_rng_state = xpu.set_rng_state = xpu.memory_allocated = lambda *_, **__: 5
    xpu.max_memory_allocated = lambda _: 7
    xpu.get_device_name = lambda _: "Arc"
    xpu.get_device_properties = lambda _: SimpleNamespace(total_memory=3)
    memory, info = backend.memory(), backend.info()
    assert (memory.current_bytes, memory.peak_bytes, memory.scope, memory.missing) == (5, 7, "XPU allocator", "")
    assert (info.name, info.memory_bytes, info.compute_units) == ("Arc", 3, None)
    assert backend.unsaved_generator() == ""
    assert list(backend.generators()) == ["cpu", "xpu"]


def test_dtypes_are_asked_of_the_device(xpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = get_backend("xpu")
    # This torch has no XPU, so a tensor on it is a RuntimeError.
    with pytest.raises(UserError, match="dtype 'float32' can't train on the xpu backend"):
        backend.cast_policy("float32")
    monkeypatch.setattr(XpuBackend, "_multiplies", lambda _, dtype: dtype != "float64")
    backend = get_backend("xpu")
    with pytest.raises(UserError, match="allowed are float32, bfloat16, float16; set dtype"):
        backend.cast_policy("float64")
    assert backend.cast_policy("bfloat16").compute == "bfloat16"
    xpu.is_bf16_supported = lambda including_emulation=True: including_emulation
    emulated = backend.cast_policy("bfloat16")
    assert (emulated.param, emulated.compute, emulated.accumulate) == ("bfloat16", "float32", "float32")
    assert backend.cast_policy("bfloat16", strict=True).compute == "bfloat16"
    # Others take no argument.
    xpu.is_bf16_supported = lambda: True
    assert backend.cast_policy("bfloat16").compute == "bfloat16"
    half = backend.cast_policy("float16")
    assert backend.grad_scaler(half) is None, "torch's scaler needs float64, so the loop refuses float16"
    monkeypatch.setattr(XpuBackend, "_has_scaler", lambda _: True)
    scaler = backend.grad_scaler(half)
    assert scaler is not None
    assert scaler._device == "xpu"


def test_devices_without_float64_say_so_before_they_are_opened() -> None:
    for kind in (MpsBackend, NpuBackend, HpuBackend, MusaBackend):
        assert "float64" not in kind.traits.dtypes
    assert NpuBackend.traits.process_group == "cpu:gloo,npu:hccl"
    assert MpsBackend.traits.process_group is None


def test_metal_has_one_device_and_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([3, 9, 4])
    module = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 1, current_allocated_memory=lambda: next(held)
    )
    monkeypatch.setattr(torch, "mps", module)
    monkeypatch.setattr(sys, "platform", "darwin")
    backend = get_backend("mps")
    uses = [backend.memory() for _ in range(3)]
    assert [(use.current_bytes, use.peak_bytes) for use in uses] == [(3, 3), (9, 9), (4, 9)]
    assert uses[0].scope == "MPS allocator, its peak at a reading"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `torch_ferrite`, whose device every `import torch` registers."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(STAND_IN, folder)
    return described(folder, "torch-ferrite", "torch.backends", {"torch_ferrite": "torch_ferrite:load"})


def test_a_registered_name_is_known_with_what_torch_says_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "garnet")
    monkeypatch.setitem(torch.distributed.Backend.default_device_backend_map, "garnet", "gccl")
    assert list_backends().count("garnet") == 1
    traits = backend_class("garnet").traits
    assert (traits.untested, traits.recomputes, traits.process_group) == (True, False, "cpu:gloo,garnet:gccl")
    with pytest.raises(BackendUnavailableError, match=r"no module torch\.garnet, which its package should register"):
        get_backend("garnet")
    # A device of isotrain's own stays that.
    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "npu")
    assert backend_class("npu") is NpuBackend
    assert list_backends().count("npu") == 1


def test_torch_is_imported_for_packages_of_unknown_devices_only(site: Path) -> None:
    script = "import sys; from isotrain.backends import list_backends; print(*list_backends(), 'torch' in sys.modules)"
    for folders, autoload, known in (
        ("", "1", False),
        (f"{site}{os.pathsep}", "1", True),
        (f"{site}{os.pathsep}", accelerators.LATE, True),
    ):
        path = folders + os.environ.get("PYTHONPATH", "")
        environment = os.environ | {"PYTHONPATH": path, accelerators.AUTOLOAD: autoload}
        command = [sys.executable, "-c", script]
        words = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
        assert ("ferrite" in words, words[-1]) == (known, str(known))


# --- a device that torch really registers


def isotrain(site: Path, folder: Path, *arguments: str, lacks: str = "") -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "isotrain.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "FERRITE_LACKS": lacks},
    )


def checks(site: Path, folder: Path, only: str, lacks: str = "") -> dict[str, dict[str, Any]]:
    """What `isotrain conformance` finds on the device, by the name of the check."""
    done = isotrain(
        site, folder, "conformance", "--backend", "ferrite", "--only", only, "--json", "found.json", lacks=lacks
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "This backend was not run by its authors." in done.stdout
    return {check["name"]: check for check in json.loads((folder / "found.json").read_text())["checks"]}


@pytest.mark.slow
def test_a_registered_device_holds_what_it_claims(site: Path, tmp_path: Path) -> None:
    found = checks(site, tmp_path, "device/")
    assert {name for name, check in found.items() if check["status"] == "unsupported"} == {
        "device/energy",
        "device/recompute",
        "device/unknown-option",
    }


@pytest.mark.slow
def test_what_a_registered_device_lacks_is_listed(site: Path, tmp_path: Path) -> None:
    found = checks(site, tmp_path, "device/*e*or*", lacks="generator,memory")
    for name, words in (("memory", "counts memory"), ("generators-device", "has no get_rng_state")):
        check = found[f"device/{name}"]
        assert (check["status"], words in check["detail"]) == ("unsupported", True)


@pytest.mark.slow
def test_a_registered_device_trains(site: Path, tmp_path: Path) -> None:
    sets = ["model_name=random:tiny", "max_steps=3", "dataset_id=embedded:intents?train=154&test=77", "dtype=bfloat16"]
    options = [part for item in sets for part in ("--set", item)]
    command = ("train", "quickstart", "--backend", "ferrite", *options)
    for way, lacks in (("true", ""), ("false", ""), ("false", "generator,memory")):
        done = isotrain(site, tmp_path, *command, "--set", f"freeze_encoder={way}", lacks=lacks)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert "Traceback" not in said
        assert "backend ferrite was not run by its authors" in said
        assert ("whole models in float32: torch.ferrite has no autocast" in said) == (way == "false")
    done = isotrain(site, tmp_path, *command, lacks="devices")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "finds no ferrite device" in line
