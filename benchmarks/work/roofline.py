"""Where a target stands under the roof that its own run measured: matrix product and memory copy (rule 11).

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009. Bandwidth is
that of a copy as large as what the step must move: a step that fits a cache is held against the cache, and against main
memory where it doesn't (Ilic, Pratas and Sousa, "Cache-aware Roofline model", IEEE CAL 13(1), 2014).
"""

from __future__ import annotations

from typing import Any


def place(entry: dict[str, Any]) -> dict[str, Any] | None:
    """A measured target's place, from its hardware FLOPs, its modelled bytes and its run's peaks.

    Intensity in FLOP/byte, roof in TFLOP/s, bandwidth in GB/s; `share` is of the roof, `bound` the limit that makes
    it. None for an emulated device: its times are the host's, so it stands under no roof.
    """
    if entry["device"]["emulated"]:
        return None
    work, gbps = entry["work"], bandwidth(entry)
    intensity = work["hardware_flops"] / work["moved_bytes"]
    compute, memory = compute_limit(entry), intensity * gbps / 1e3
    roof = min(compute, memory)
    return {
        "intensity_flop_per_byte": intensity,
        "roof_tflops": roof,
        "share": entry["figures"]["hardware_tflops"]["median"] / roof,
        "bound": "compute" if compute <= memory else "memory",
        "bandwidth_gbps": gbps,
    }


def compute_limit(entry: dict[str, Any]) -> float:
    """TFLOP/s that no kernel can exceed: a library's product, or the matrix unit alone where that was measured.

    A library may use a fraction of the unit: a kernel that beats it breaks no law of the device.
    """
    peaks = entry["peaks"]
    unit = peaks.get("unit")
    alone = unit["tflops"] if unit is not None and unit["dtype"] == peaks["dtype"] else 0.0
    return max(peaks["matmul_tflops"], alone)


def bandwidth(entry: dict[str, Any]) -> float:
    """GB/s of the fastest copy that is as large as the step's traffic, or of any larger one."""
    copies = [entry["peaks"]["copy_gbps"], *(process["peaks"]["step_copy_gbps"] for process in entry["processes"])]
    return max(copies)
