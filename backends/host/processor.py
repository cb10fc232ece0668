"""The host's processor, as its system describes it. Nothing here imports torch."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo; empty where the system has none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def processor_name() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def matrix_features() -> tuple[str, ...]:
    """The instruction sets that decide matrix speed, as Linux names them."""
    flags = set(_cpuinfo().get("flags", "").split())
    known = ("amx_bf16", "amx_int8", "amx_tile", "avx512_bf16", "avx512_vnni", "avx512f", "avx2", "fma")
    return tuple(flag for flag in known if flag in flags)


def bfloat16_units() -> str:
    """The CPU's bfloat16 matrix instructions that torch's kernels use, or an empty string."""
    features = matrix_features()
    if "amx_bf16" in features:
        return "AMX"
    return "AVX512-BF16" if "avx512_bf16" in features else ""


def int8_units() -> str:
    """The CPU's int8 matrix instructions, or an empty string."""
    features = matrix_features()
    if "amx_int8" in features:
        return "AMX"
    return "AVX512-VNNI" if "avx512_vnni" in features else ""
