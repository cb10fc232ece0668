"""AMD's GPUs under torch.cuda, with torch's answers as a ROCm build gives them. No kernel runs here."""

from __future__ import annotations

import runpy
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from isotrain.backends import BackendUnavailableError, backend_class
from isotrain.backends.cuda import rocm
from isotrain.backends.cuda.device import CudaBackend
from isotrain.backends.cuda.rocm import RocmBackend


class Hosted(RocmBackend):
    """The backend's choices with the host in the GPU's place."""

    def __init__(self) -> None:
        self.index, self._captures = None, []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What torch says of an MI300X."""
    properties = SimpleNamespace(
        name="AMD Instinct MI300X",
        gcnArchName="gfx942:sramecc+:xnack-",
        major=9,
        minor=4,
        total_memory=192 * 2**30,
        multi_processor_count=304,
        pci_domain_id=0,
        pci_bus_id=0xC1,
        pci_device_id=0,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "hip", "7.1.0")
    return properties


def test_the_build_of_torch_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend_class("cuda") is CudaBackend
    monkeypatch.setattr(torch.version, "hip", "7.1.0")
    chosen = runpy.run_path(str(rocm.__file__), run_name="isotrain.backends.cuda.rocm_of_a_test")["BuiltBackend"]
    assert (chosen.__name__, chosen.name, chosen.traits.untested) == ("RocmBackend", "cuda", True)


def test_a_gpu_says_what_it_is(gpu: SimpleNamespace) -> None:
    info = Hosted().info()
    assert info.features == ("gfx942", "Instinct MI300 series")
    assert (info.vendor_peak_tflops, info.vendor_bandwidth_gbps) == (1307.4, 5300.0)
    assert info.versions == {"torch": torch.__version__, "hip": "7.1.0", "driver": "unknown"}
    assert info.untested
    gpu.multi_processor_count = 38
    assert Hosted().info().vendor_peak_tflops is None, "an eighth of the GPU"
    gpu.name, gpu.gcnArchName = "AMD Radeon Graphics", "gfx1100"
    unknown = Hosted().info()
    assert (unknown.features, unknown.vendor_peak_tflops) == (("gfx1100",), None)


@pytest.mark.parametrize(
    ("architecture", "compute", "kernels"),
    [
        ("gfx942:sramecc+:xnack-", "bfloat16", ""),
        ("gfx950:sramecc+:xnack-", "bfloat16", ""),
        # Compared as numbers, these would be newer than sm_80.
        ("gfx1030", "float32", "gfx1030, the Triton kernels are for gfx942 and gfx950"),
        ("gfx906:sramecc-:xnack-", "float32", "gfx906"),
        ("gfx90a:sramecc+:xnack-", "bfloat16", "gfx90a"),
    ],
)
def test_the_architecture_decides(
    architecture: str, compute: str, kernels: str, gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.gcnArchName = architecture
    monkeypatch.setattr("isotrain.kernels.cuda.why_no_triton", lambda: "")
    backend = Hosted()
    policy = backend.cast_policy("bfloat16")
    assert policy.compute == compute
    assert "matrix cores" in policy.reason
    state = backend.kernels()["triton"]
    assert state.ok == (not kernels)
    assert kernels in state.reason


def test_words_are_those_of_rocm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.1.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    absent = RocmBackend.probe()
    assert not absent.ok
    for word in ("AMD GPU", "amd-smi", "HIP 7.1.0", "HIP_VISIBLE_DEVICES"):
        assert word in f"{absent.reason} {absent.fix}"

    def held(_: int) -> str:
        raise RuntimeError("HIP error: invalid device\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", held)
    error = BackendUnavailableError.of("cuda", RocmBackend.probe().reason, RocmBackend.probe().fix)
    assert "amd-smi" in str(error)
    assert "nvidia" not in str(error).lower()
    assert "\n" not in str(error)


class _SmiError(Exception):
    pass


@pytest.fixture
def smi(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """amdsmi with two GPUs, the second one ours."""
    counted = {"energy_accumulator": 2_000_000, "counter_resolution": 15.3, "timestamp": 1}
    library = SimpleNamespace(
        AmdSmiException=_SmiError,
        amdsmi_init=lambda: None,
        amdsmi_get_processor_handles=lambda: ["first", "second"],
        amdsmi_get_gpu_device_bdf={"first": "0000:23:00.0", "second": "0000:C1:00.1"}.get,
        amdsmi_get_energy_count={"second": counted}.__getitem__,
    )
    monkeypatch.setitem(sys.modules, "amdsmi", library)
    return library


def test_amd_smi_counts_the_gpu_at_torchs_address(gpu: SimpleNamespace, smi: SimpleNamespace) -> None:
    energy = Hosted().energy()
    assert energy.joules == pytest.approx(30.6)
    assert energy.source == "AMD SMI, the whole GPU"
    gpu.pci_bus_id = 0x99
    assert Hosted().energy().source == "unavailable: AMD SMI lists no GPU at 0000:99:00"

    def refuse(_: Any) -> None:
        raise _SmiError("not supported")

    gpu.pci_bus_id, smi.amdsmi_get_energy_count = 0xC1, refuse
    assert Hosted().energy().source == "unavailable: AMD SMI can't read it (not supported)"


@pytest.mark.usefixtures("gpu")
def test_without_amd_smi_there_are_no_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    energy = Hosted().energy()
    assert energy.joules is None
    assert energy.source.startswith("unavailable: ROCm's Python package amdsmi can't be imported")
