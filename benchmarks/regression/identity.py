"""What decides speed beside the code that is compared, and what differs of it between two results (rule 9)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ... import UserError
from ...kernels.names import check_name
from ..harness.document import ProcessEnvironment
from ..outcome.end_to_end import Side
from ..outcome.model import Environment, MeasuredTarget


class Difference(NamedTuple):
    """One fact that differs. of: the target that it is of, or "" where it is the machine's or the installation's."""

    of: str
    key: str
    before: str
    after: str

    def words(self) -> str:
        where = f"{self.of}: " if self.of else ""
        return f"{where}{self.key} {self.before} -> {self.after}"


# Facts that decide speed: results that differ in one are compared only where --allow names it. The others are told;
# the code itself is what is compared.
DECISIVE = (
    "processor",
    "governor",
    "torch",
    "kernel",
    "module",
    "torch_compile",
    "device",
    "threads",
    "inter_op",
    "affinity",
    "quota",
    "nice",
)


# Where a result keeps each fact of the machine and the installation.
_PLACES = {
    "torch": ("versions", "torch"),
    "isotrain": ("versions", "isotrain"),
    "processor": ("cpu", "model"),
    "governor": ("cpu", "governor"),
    "quota": ("cpu", "quota_cpus"),
    "nice": ("cpu", "nice"),
    "python": ("host", "python"),
    "system": ("host", "system"),
    "host memory": ("host", "memory_bytes"),
}


def of_machine(environment: Environment) -> dict[str, str]:
    """The facts of the machine and the installation, where they were recorded; a file may hold anything instead."""
    found = {key: getattr(environment, part).get(name) for key, (part, name) in _PLACES.items()}
    return _known({"revision": environment.revision, **found})


def of_target(target: MeasuredTarget) -> dict[str, str]:
    """The facts of a target and its first process."""
    first = target.processes[0].environment
    return _known(
        {
            "kernel": target.kernel_used.name,
            "module": target.model.code_sha256 and target.model.code_sha256[:12],
            "torch_compile": target.torch_compile or "off",
            "device": target.device.name,
            "threads": first.threads.intra_op,
            "inter_op": first.threads.inter_op,
            "affinity": _ranges(first.affinity) if isinstance(first.affinity, list) else None,
            "clocks": _clocks(first),
        }
    )


def of_history(environment: Environment, target: MeasuredTarget) -> dict[str, str]:
    """The facts that a history marks where they change: those that decide speed, and the package's own version."""
    facts = of_machine(environment) | of_target(target)
    return {key: value for key, value in facts.items() if key in (*DECISIVE, "isotrain")}


def of_side(side: Side) -> dict[str, str]:
    """The facts of a side of an end-to-end run."""
    return {"device": side.processes[0].device}


def differences(before: dict[str, str], after: dict[str, str], of: str = "") -> list[Difference]:
    """What both recorded and what differs."""
    both = [key for key in after if key in before]
    return [Difference(of, key, before[key], after[key]) for key in both if before[key] != after[key]]


def check_allowed(found: Iterable[Difference], allowed: Iterable[str]) -> None:
    """Raises UserError for a difference that decides speed and isn't allowed, and for a key that there isn't."""
    allowed = tuple(allowed)
    for key in allowed:
        check_name("--allow", key, DECISIVE)
    refused = [one for one in found if one.key in DECISIVE and one.key not in allowed]
    if refused:
        keys = " ".join(f"--allow {key}" for key in dict.fromkeys(one.key for one in refused))
        raise UserError(
            f"{refused[0].words()}, which decides speed; measure both alike, or accept it by {keys}"
            + (f" ({len(refused) - 1} more differ)" if len(refused) > 1 else "")
        )


def _known(values: dict[str, Any]) -> dict[str, str]:
    return {
        key: str(value)
        for key, value in values.items()
        if isinstance(value, (str, int, float)) and not str(value).startswith("unavailable: ")
    }


def _ranges(numbers: list[int]) -> str:
    """``0-3,8`` for [0, 1, 2, 3, 8]."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _clocks(process: ProcessEnvironment) -> str | None:
    """The mean clock before the measurement, in steps of 100 MHz: single readings scatter."""
    clocks = process.before.get("clock_mhz")
    if not isinstance(clocks, list) or not clocks or not all(isinstance(clock, (int, float)) for clock in clocks):
        return None
    return f"{round(sum(clocks) / len(clocks) / 100) * 100} MHz"
