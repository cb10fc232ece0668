"""The columns of a result's tables: what each shows of a target that has figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from ...albert_core.terminal.text import figure
from ..harness.plan import CACHED


@dataclass(frozen=True)
class Column:
    """One column: its header, what it shows of a target with figures, and whether a narrow terminal has it too."""

    header: str
    cell: Callable[[dict[str, Any]], str]
    narrow: bool = False


def rate(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda entry: figure(entry["figures"][name]["median"])


def _tokens(name: str) -> Callable[[dict[str, Any]], str]:
    """A rate of tokens; a step on cached features computes none."""
    return lambda entry: "cached" if entry["layout"] == CACHED else rate(name)(entry)


def _step(name: str) -> Callable[[dict[str, Any]], str]:
    def cell(entry: dict[str, Any]) -> str:
        seconds = entry["figures"]["step_seconds"][name]
        return "n < 100" if seconds is None else figure(seconds * 1e3)

    return cell


def share(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda entry: "n/a" if entry["share_of_peak"] is None else f"{entry['share_of_peak'][name]:.1%}"


def _phase(*names: str) -> Callable[[dict[str, Any]], str]:
    return lambda entry: figure(sum(entry["phases"][name]["median"] for name in names))


def interval_cell(entry: dict[str, Any]) -> str:
    samples = entry["figures"]["samples_per_second"]
    return f"{figure(samples['low'])} to {figure(samples['high'])}"


def _ratio(entry: dict[str, Any]) -> str:
    return f"{entry['relative']['median']:.2f}x" if entry["relative"] else "1"


def _warm_up(entry: dict[str, Any]) -> str:
    steps = median(process["warm_up"]["steps"] for process in entry["processes"])
    return f"{_phase('warm_up')(entry)} ({steps:.0f})"


def throughput_columns(has_p99: bool) -> list[Column]:
    return [
        Column("samples/s", rate("samples_per_second"), narrow=True),
        Column("95 % interval", interval_cell, narrow=True),
        Column("speed vs\nfirst", _ratio),
        Column("real\ntokens/s", _tokens("real_tokens_per_second")),
        Column("step\np50 ms", _step("p50"), narrow=True),
        Column("step\np90 ms", _step("p90")),
        *([Column("step\np99 ms", _step("p99"))] if has_p99 else []),
        Column("model\nTFLOP/s", rate("model_tflops"), narrow=True),
        Column("of\npeak", share("model"), narrow=True),
    ]


PHASE_COLUMNS = (
    Column("computed\ntokens/s", _tokens("padded_tokens_per_second")),
    Column("hardware\nTFLOP/s", rate("hardware_tflops"), narrow=True),
    Column("of\npeak", share("hardware"), narrow=True),
    Column("import\ns", _phase("import")),
    Column("load\ns", _phase("open", "load", "data", "prepare"), narrow=True),
    Column("first\nstep s", _phase("first_step"), narrow=True),
    Column("warm-up s\n(steps)", _warm_up, narrow=True),
    Column("compiles\nin it s", _phase("later_compiles")),
    Column("steady s\n(n)", lambda entry: f"{_phase('steady')(entry)} ({entry['n']})"),
    Column("peak\nMiB", lambda entry: figure(entry["memory"]["peak_bytes"] / 2**20), narrow=True),
)


def _roof(text: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], str]:
    """A cell of the target's place under the roof; an emulated device has none."""
    return lambda entry: "none" if entry["roofline"] is None else text(entry["roofline"])


def _joules(entry: dict[str, Any]) -> str:
    joules = entry["energy"]["joules_per_sample"]
    return "unavailable" if joules is None else "{} ({} to {})".format(*map(figure, joules.values()))


ROOF_COLUMNS = (
    Column("moved\nMB/step", lambda entry: figure(entry["work"]["moved_bytes"] / 1e6)),
    Column("FLOP\nper byte", _roof(lambda roof: figure(roof["intensity_flop_per_byte"])), narrow=True),
    Column("copy\nGB/s", _roof(lambda roof: figure(roof["bandwidth_gbps"]))),
    Column("roof\nTFLOP/s", _roof(lambda roof: figure(roof["roof_tflops"])), narrow=True),
    Column("of\nroof", _roof(lambda roof: f"{roof['share']:.1%}"), narrow=True),
    Column("bound by", _roof(lambda roof: roof["bound"]), narrow=True),
    Column("J/text\n(95 % interval)", _joules),
)


def _of_unit(entry: dict[str, Any]) -> str:
    of_unit = (entry["share_of_peak"] or {}).get("unit")
    return "n/a" if of_unit is None else f"{of_unit:.1%}"


UNIT_COLUMN = Column("of\nunit", _of_unit, narrow=True)
