"""Energy of the host's processor packages: Intel's and AMD's RAPL counters through Linux's powercap interface."""

from __future__ import annotations

from pathlib import Path

from ...kernels.words import count
from ..types import EnergyUse

POWERCAP = Path("/sys/class/powercap")


class RaplCounters:
    """Joules of all packages since this object was made. Read it before a counter can wrap twice."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._packages = [folder for folder in sorted(root.glob("intel-rapl:?")) if _is_package(folder)]
        self._before: dict[Path, int] = {}
        self._total = 0

    def read(self) -> EnergyUse:
        if not self._packages:
            return EnergyUse(None, "unavailable: no RAPL package in /sys/class/powercap (usual in virtual machines)")
        try:
            for folder in self._packages:
                now = _microjoules(folder / "energy_uj")
                moved = now - self._before.get(folder, now)
                self._total += moved if moved >= 0 else moved + _microjoules(folder / "max_energy_range_uj")
                self._before[folder] = now
        except OSError as error:
            return EnergyUse(None, f"unavailable: {folder.name}/energy_uj is not readable ({error.strerror})")
        return EnergyUse(self._total / 1e6, f"RAPL, {count(len(self._packages), 'processor package')}, whole machine")


def _is_package(folder: Path) -> bool:
    """Whether a domain is a processor package, rather than a part of one or the whole platform."""
    try:
        return (folder / "name").read_text().startswith("package")
    except OSError:
        return False


def _microjoules(path: Path) -> int:
    return int(path.read_text())
