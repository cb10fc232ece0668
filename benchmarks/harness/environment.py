"""What every result says about its machine and installation (rule 9). A value that can't be read says why.

This reads files and runs git, and imports nothing heavy. A worker adds torch's thread counts.
"""

from __future__ import annotations

import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from ...albert_core.terminal.text import redacted
from .turns import Turns

PACKAGES = ("isotrain", "torch", "transformers", "tokenizers", "datasets", "numpy", "triton", "torch-xla")
MATRIX_FLAGS = ("amx_bf16", "amx_int8", "amx_tile", "avx512_bf16", "avx512f", "avx2", "fma")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "KMP_AFFINITY",
)

# Linux takes a thread's CPU away 15 to 60 times a second on an otherwise idle machine, and 130 to 180 times if another
# process needs that CPU all the time.
BUSY_SWITCHES_PER_THREAD = 100.0
# The share of its time that a thread may wait for a CPU.
LARGEST_WAIT = 0.05

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def describe() -> dict[str, Any]:
    """This process's machine and installation, as plain values or "unavailable: reason"."""
    return {"host": host(), "cpu": cpu(), "load": load_average(), "versions": versions(), "git": git_state()}


def host() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "python_build": platform.python_compiler(),
        "memory_bytes": _memory_bytes(),
        "transparent_huge_pages": _read(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
    }


def cpu(
    proc: Path = Path("/proc"), sys_cpu: Path = Path("/sys/devices/system/cpu"), cgroups: Path = Path("/sys/fs/cgroup")
) -> dict[str, Any]:
    """The host's processor, and how much of it this process may have."""
    cpuinfo = _read(proc / "cpuinfo")
    flags = _cpuinfo_values(cpuinfo, "flags")
    return {
        "model": next(iter(_cpuinfo_values(cpuinfo, "model name")), _why(cpuinfo, "no model name in cpuinfo")),
        "matrix_flags": [flag for flag in MATRIX_FLAGS if flag in flags[0].split()]
        if flags
        else _why(cpuinfo, "no flags in cpuinfo"),
        "logical_cpus": os.cpu_count(),
        "affinity": affinity(),
        "quota_cpus": quota_cpus(proc, cgroups),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "thread_variables": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        "governor": _read(sys_cpu / "cpu0" / "cpufreq" / "scaling_governor"),
        "clock_mhz": clock_mhz(cpuinfo),
        "temperature_celsius": temperature(),
    }


def affinity() -> list[int] | str:
    """The logical CPUs that this process may run on."""
    if not hasattr(os, "sched_getaffinity"):
        return "unavailable: this system has no CPU affinity"
    return sorted(os.sched_getaffinity(0))


def quota_cpus(proc: Path, cgroups: Path) -> float | str:
    """The CPUs whose whole time the control groups of this process allow it at most; "unlimited" where they don't."""
    quotas: list[float] = []
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        # Version 2 has no controllers here, version 1 a tree for each. The tightest group on the way up counts.
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / "cpu" if controllers else cgroups
        group = root / path.strip("/")
        for folder in (group, *group.parents[: len(group.parents) - len(root.parents)]):
            both = (folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us") if controllers else (folder / "cpu.max",)
            words = " ".join(map(_read, both)).split()
            if len(words) == 2 and words[1].isdigit():
                quotas.append(int(words[0]) / int(words[1]) if words[0].isdigit() else math.inf)
    if not quotas:
        return "unavailable: no control group says it"
    return "unlimited" if min(quotas) == math.inf else min(quotas)


def clock_mhz(cpuinfo: str | None = None) -> list[float] | str:
    """The current clock of each logical CPU in MHz (under a hypervisor, the nominal one)."""
    text = _read(Path("/proc/cpuinfo")) if cpuinfo is None else cpuinfo
    clocks = [float(value) for value in _cpuinfo_values(text, "cpu MHz")]
    return clocks or _why(text, "no cpu MHz in cpuinfo")


def temperature(zones: Path = Path("/sys/class/thermal")) -> dict[str, float] | str:
    """Degrees Celsius of each thermal zone, by its type."""
    found: dict[str, float] = {}
    for zone in sorted(zones.glob("thermal_zone*")):
        value = _read(zone / "temp")
        if value.lstrip("-").isdigit():
            found[f"{zone.name} {_read(zone / 'type')}"] = int(value) / 1000.0
    return found or "unavailable: no readable thermal zone (usual in virtual machines)"


def load_average() -> list[float] | str:
    """The system's load over 1, 5 and 15 minutes."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (OSError, AttributeError):
        return "unavailable: this system has no load average"


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unavailable: not installed"
    return found


def git_state(root: Path = PACKAGE_ROOT) -> dict[str, Any] | str:
    """The revision and whether files differ from it, if `root` is the top of a git checkout.

    An installed copy in a virtual environment doesn't count, even inside another checkout.
    """
    if shutil.which("git") is None:
        return "unavailable: git is not installed"
    top = git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return "unavailable: not a git checkout"
    revision = git(root, "rev-parse", "HEAD")
    if revision is None:
        return "unavailable: the checkout has no commit yet"
    changed = (git(root, "status", "--porcelain") or "").splitlines()
    return {"revision": revision, "dirty": bool(changed), "changed_files": len(changed)}


def moment() -> dict[str, Any]:
    """What may change during a measurement: load, clocks, temperature."""
    return {"load": load_average(), "clock_mhz": clock_mhz(), "temperature_celsius": temperature()}


class Lost(NamedTuple):
    """The CPU time that this process's threads have lost to other work so far.

    Attributes:
        switches: How often they lost a CPU (getrusage's ru_nivcsw).
        seconds: How long they were ready and waited for a CPU; 0 if the system doesn't count it.
    """

    switches: int
    seconds: float


def lost(tasks: Path = Path("/proc/self/task")) -> Lost:
    """What the living threads have lost until now."""
    waited = sum(int(fields[1]) for path in tasks.glob("*/schedstat") if len(fields := _read(path).split()) == 3)
    return Lost(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, waited / 1e9)


def is_contended(before: Lost, after: Lost, seconds: float, threads: int) -> bool:
    """Whether other work took the CPUs from a process of `threads` threads in those `seconds`.

    A few competing processes show in the switches, and many with long turns in the waiting time.
    """
    often = after.switches - before.switches > BUSY_SWITCHES_PER_THREAD * threads * seconds
    return often or after.seconds - before.seconds > LARGEST_WAIT * threads * seconds


def command_line() -> list[str]:
    """The command as it was typed, without the interpreter's path."""
    return [Path(sys.argv[0]).name, *map(redacted, sys.argv[1:])]


def git(root: Path, *arguments: str) -> str | None:
    """git's output, or None if it fails. Optional locks are off, so that reading a state doesn't write the index."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        return f"unavailable: {path.name} is not readable ({error.strerror})"


def _cpuinfo_values(text: str, key: str) -> list[str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def _why(text: str, otherwise: str) -> str:
    return text if text.startswith("unavailable: ") else f"unavailable: {otherwise}"


def _memory_bytes() -> int | str:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return "unavailable: the system doesn't say"


class Contention:
    """What, since it was made, other work took from this process's threads, but for when it waited for its turn."""

    def __init__(self, turns: Turns) -> None:
        self._turns, self._waited = turns, turns.waited
        self._before, self._start = lost(), time.perf_counter_ns()

    def so_far(self) -> bool:
        """Whether that is so much that figures suffer."""
        import torch

        return is_contended(self._before, lost(), self._seconds(), torch.get_num_threads())

    def a_second(self) -> tuple[float, float]:
        """Involuntary switches, and seconds waited, in a second."""
        now, seconds = lost(), self._seconds()
        switches, waited = now.switches - self._before.switches, now.seconds - self._before.seconds
        return round(switches / seconds, 1), round(waited / seconds, 4)

    def _seconds(self) -> float:
        return (time.perf_counter_ns() - self._start) / 1e9 - (self._turns.waited - self._waited)
