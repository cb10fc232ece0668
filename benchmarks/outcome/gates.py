"""What one process can't see: whether the targets of a run fit each other and the device's limits (rule 6).

A target that fails a gate keeps its figures and gets a reason, which makes it invalid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from ..work.roofline import compute_limit, place
from .model import emulated_name

# The peak is a measurement too; one that others contended may be this much too low.
PEAK_TOLERANCE = 1.05
CONTENDED_TOLERANCE = 3.0
# A copy is held up by its writes, before which caches read what they replace: reading alone moves up to twice as much.
COPY_TOLERANCE = 2.0
# The largest relative L2 distance between two layouts' or kernels' logits of the same texts, by compute dtype.
LARGEST_DISTANCE = {"float64": 1e-8, "float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}

Entry = dict[str, Any]
Probe = dict[str, list[float]]


def judge(entries: Sequence[Entry], probes: Sequence[Probe]) -> None:
    """Runs every gate over the targets of a result and sets each one's `valid` and `share_of_peak`.

    probes: for each target, logits by text, or nothing.
    """
    measured = measured_entries(entries)
    gate_identity(measured)
    gate_peaks(measured)
    gate_growth(measured)
    gate_answers([(entry, probe) for entry, probe in zip(entries, probes, strict=True) if probe])
    for entry in entries:
        entry["valid"] = not entry["reasons"]


def measured_entries(entries: Sequence[Entry]) -> list[Entry]:
    """The targets that have figures."""
    return [entry for entry in entries if "figures" in entry]


def is_contended(entry: Entry) -> bool:
    """Whether other work had the CPUs while one of the target's processes was measured."""
    return any(process["environment"]["contended"] for process in entry["processes"])


def gate_identity(entries: Sequence[Entry]) -> None:
    """All targets must have run the same weights; all of one batch size the same texts, and baselines those of all."""
    compared = any(entry["baseline"] for entry in entries)
    for entry in entries[1:]:
        if entry["model"]["sha256"] != entries[0]["model"]["sha256"]:
            entry["reasons"].append(f"its encoder weights are not those of {entries[0]['label']}")
    first_of_size: dict[int, Entry] = {}
    for entry in entries:
        first = first_of_size.setdefault(0 if compared else entry["batch_size"], entry)
        if entry["data"]["sha256"] != first["data"]["sha256"]:
            entry["reasons"].append(f"its texts are not those of {first['label']}")


def gate_peaks(entries: Sequence[Entry]) -> None:
    """Sets shares of the measured peak and the place under the roof; faster than the device's peaks is impossible.

    An emulated device has no shares (None): the peak that was measured is the host's.

    The best peak that any process of the run measured counts for all; where each of them was contended by other work,
    a little too fast is a warning, because the peak is known to be too low then. Bytes are the fewest that the step
    must move, held against a copy of as many: what fits a cache is held against the cache.
    """
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in entries:
        key = (entry["backend"], entry["peaks"]["dtype"])
        best[key] = _better(best[key], entry["peaks"]) if key in best else entry["peaks"]
    for entry in entries:
        entry["peaks"] = best[entry["backend"], entry["peaks"]["dtype"]]
        peak, unit = entry["peaks"]["matmul_tflops"], entry["peaks"].get("unit")
        useful, hardware = (entry["figures"][key]["median"] for key in ("model_tflops", "hardware_tflops"))
        entry["share_of_peak"] = None if entry["emulated"] else {"model": useful / peak, "hardware": hardware / peak}
        if unit is not None and unit["dtype"] == entry["peaks"]["dtype"] and not entry["emulated"]:
            entry["share_of_peak"]["unit"] = useful / unit["tflops"]
        entry["roofline"] = place(entry)
        _hold_against(entry, "TFLOP/s", hardware, compute_limit(entry), PEAK_TOLERANCE)
        if entry["roofline"] is not None:
            moved = entry["work"]["moved_bytes"] / entry["figures"]["step_seconds"]["median"] / 1e9
            _hold_against(entry, "GB/s", moved, entry["roofline"]["bandwidth_gbps"], COPY_TOLERANCE)


def _hold_against(entry: Entry, unit: str, reached: float, limit: float, tolerance: float) -> None:
    contended = entry["peaks"]["contended"]
    text = f"{reached:.3g} {unit} is more than the measured peak of {limit:.3g}"
    if reached > (max(CONTENDED_TOLERANCE, tolerance) if contended else tolerance) * limit:
        entry["reasons"].append(f"{text}: the fence or the peak is wrong")
    elif reached > tolerance * limit:
        entry["warnings"].append(f"{text}, which other work on the machine contended: shares of it are too high")


def _better(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The higher of two measurements of one device's peaks: of the product, and of the matrix unit by itself."""
    units = [peaks["unit"] for peaks in (one, other) if peaks.get("unit")]
    higher = max(one, other, key=lambda peaks: peaks["matmul_tflops"])
    return {**higher, "unit": max(units, key=lambda unit: unit["tflops"], default=None)}


def gate_growth(entries: Sequence[Entry]) -> None:
    """A step on a larger batch can't take less time; intervals that overlap decide nothing.

    Where other work had the CPUs while one of the two was measured, that may be why: a warning.
    """
    for small, large in combinations(sorted(entries, key=lambda entry: entry["batch_size"]), 2):
        alike = all(small[key] == large[key] for key in ("backend", "workload", "layout", "kernel"))
        if not alike or small["batch_size"] == large["batch_size"]:
            continue
        if large["figures"]["step_seconds"]["high"] < small["figures"]["step_seconds"]["low"]:
            found = f"its step takes less time than that of the smaller batch {small['batch_size']}"
            if is_contended(small) or is_contended(large):
                large["warnings"].append(f"{found}, and other work on the machine contended them")
            else:
                large["reasons"].append(found)


def gate_answers(probed: Sequence[tuple[Entry, Probe]]) -> None:
    """The same texts must give the same logits in every layout and kernel: fast and wrong is no result.

    Only targets of one mode (a math fidelity, a block format of the weights) are held against each other: coarser
    numbers are what another mode is about.
    """
    references: dict[str, tuple[Entry, Probe]] = {}
    for entry, probe in probed:
        reference, expected = references.setdefault(entry["policy"].get("mode", ""), (entry, probe))
        common = sorted(expected.keys() & probe.keys())
        if not common or entry["data"]["sha256"] != reference["data"]["sha256"]:
            continue
        limit = max(LARGEST_DISTANCE[one["policy"]["compute"]] for one in (entry, reference))
        distance = relative_distance([expected[row] for row in common], [probe[row] for row in common])
        # Not `distance > limit`: a NaN must fail.
        if not distance <= limit:
            entry["reasons"].append(
                f"its logits differ from those of {reference['label']} by {distance:.1e} in relative L2 "
                f"(at most {limit:g})"
            )


def relative_distance(expected: Sequence[Sequence[float]], found: Sequence[Sequence[float]]) -> float:
    """L2 norm of the difference over that of `expected`."""
    pairs = [pair for rows in zip(expected, found, strict=True) for pair in zip(*rows, strict=True)]
    norm = math.sqrt(sum(value * value for value, _ in pairs))
    difference = math.sqrt(sum((value - other) ** 2 for value, other in pairs))
    return difference / norm if norm else math.inf


def shown_label(entry: Entry) -> str:
    """A target's label as every table shows it: a device that is only emulated is called so."""
    emulated = entry.get("device", {}).get("emulated", False)
    return emulated_name(entry["label"], entry["backend"]) if emulated else str(entry["label"])


def revision(result: dict[str, Any]) -> str:
    """The git revision that a result was measured at, in short; "+" after it where files differed from it."""
    git = result["environment"].get("git", "")
    if not isinstance(git, dict):
        return "unknown"
    return f"{git['revision'][:10]}{'+' if git['dirty'] else ''}"
