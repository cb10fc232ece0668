"""Figures of end-to-end runs: each side's work over its seconds, held against the limits of the device they ran on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..harness.document import Interval
from ..harness.statistics import median_interval
from ..outcome.gates import gate_peaks

Side = dict[str, Any]

# A rate of an end-to-end run, and the quantity that it is of.
RATES = {
    "samples_per_second": ("samples", 1.0),
    "real_tokens_per_second": ("real_tokens", 1.0),
    "padded_tokens_per_second": ("padded_tokens", 1.0),
    "model_tflops": ("model_flops", 1e12),
    "hardware_tflops": ("hardware_flops", 1e12),
}
ONLY_A_PART = "unavailable: only a part of the run was run"


def add_figures(sides: Sequence[Side], counted: Mapping[str, Any], seed: int) -> None:
    """Gives sides that have `seconds` their work, rates, energy, shares of the peak and place under the roof.

    counted: what `whole_work.count` returned. A side faster than the device's own peak gets a reason, which makes it
    invalid; all rates of a side share the interval of its seconds.
    """
    loops = iter(counted["loops"])
    measured = []
    for side in sides:
        if "seconds" not in side:
            continue
        side["work"] = next(loops) if side["extrapolated"] else counted["work"]
        seconds = Interval(**side["seconds"])
        side["figures"] = {
            name: seconds.rate(side["work"][quantity] / unit).document() for name, (quantity, unit) in RATES.items()
        }
        side["energy"] = _energy(side, seed)
        measured.append(side)
    entries = [_entry(side, counted) for side in measured]
    gate_peaks(entries)
    for side, entry in zip(measured, entries, strict=True):
        side |= {key: entry[key] for key in ("share_of_peak", "roofline", "reasons", "warnings")}
        side["valid"] = side["valid"] and not side["reasons"]


def _entry(side: Side, counted: Mapping[str, Any]) -> dict[str, Any]:
    """A side as the gates know a target: its one step is the end-to-end run."""
    device = counted["device"]
    return {
        "backend": device["backend"],
        "device": device,
        "emulated": device["emulated"],
        "work": side["work"],
        "figures": {**side["figures"], "step_seconds": side["seconds"]},
        "peaks": counted["peaks"],
        "processes": [{"peaks": counted["peaks"]}],
        "reasons": list(side["reasons"]),
        "warnings": [],
    }


def _energy(side: Side, seed: int) -> dict[str, Any]:
    """Joules a text from the runs' counters, from the opened device to the end, or why there are none."""
    if side["extrapolated"]:
        return {"source": ONLY_A_PART, "joules_per_sample": None, "n": 0}
    told = [process["energy"] for process in side["processes"]]
    without = next((one for one in told if one["joules"] is None or one["joules"] <= 0.0), None)
    if without is not None:
        unread = without["joules"] is None
        source = without["source"] if unread else "unavailable: the counter stood still during a run"
        return {"source": source, "joules_per_sample": None, "n": 0}
    per_text = [[one["joules"] / side["work"]["samples"]] for one in told]
    return {
        "source": told[0]["source"],
        "joules_per_sample": median_interval(per_text, seed).document(),
        "n": len(per_text),
    }
