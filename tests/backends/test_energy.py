"""Energy counters: RAPL's files as Linux lays them out, NVML as its Python binding has it, and what is not there."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from isotrain.backends.cuda.nvml import gpu_energy
from isotrain.backends.host.rapl import RaplCounters


def domain(root: Path, folder: str, name: str, energy: int) -> Path:
    path = root / folder
    path.mkdir()
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy}\n")
    (path / "max_energy_range_uj").write_text("1000000\n")
    return path / "energy_uj"


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    first = domain(tmp_path, "intel-rapl:0", "package-0", 100)
    second = domain(tmp_path, "intel-rapl:1", "package-1", 50)
    core = domain(tmp_path, "intel-rapl:0:0", "core", 7)
    platform = domain(tmp_path, "intel-rapl:2", "psys", 7)
    counters = RaplCounters(tmp_path)
    assert counters.read().joules == 0.0
    for file in (first, second, core, platform):
        file.write_text("300100")
    assert counters.read().joules == pytest.approx(0.30 + 0.30005)
    assert counters.read().source == "RAPL, 2 processor packages, whole machine"


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    file = domain(tmp_path, "intel-rapl:0", "package-0", 999_000)
    counters = RaplCounters(tmp_path)
    counters.read()
    file.write_text("1000")
    assert counters.read().joules == pytest.approx(0.002)


def test_what_cant_be_read_says_why(tmp_path: Path) -> None:
    missing = RaplCounters(tmp_path).read()
    assert missing.joules is None
    assert missing.source.startswith("unavailable: no RAPL package")
    file = domain(tmp_path, "intel-rapl:0", "package-0", 1)
    counters = RaplCounters(tmp_path)
    file.unlink()
    assert counters.read().source == "unavailable: intel-rapl:0/energy_uj is not readable (No such file or directory)"


def test_nvml_counts_millijoules_of_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid) or "handle",
        nvmlDeviceGetTotalEnergyConsumption={"handle": 5500}.get,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gpu_energy("abc").joules == 5.5
    assert asked == ["GPU-abc"]

    def refuse(handle: object) -> int:
        raise RuntimeError("Not Supported")

    nvml.nvmlDeviceGetTotalEnergyConsumption = refuse
    assert gpu_energy("abc").source == "unavailable: NVML can't read it (Not Supported)"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py is not installed" in gpu_energy("abc").source
