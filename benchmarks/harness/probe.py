"""What `isotrain doctor` finds out: each device in a process of its own, so that none changes what another does.

``python -m isotrain.benchmarks.harness.probe`` examines one device behind a backend's name. A backend that crashes,
hangs or ends its process is its own line's trouble.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ... import UserError
from ...albert_core.terminal.text import error_line
from .answer import answer, read_answer
from .document import Device, Part, Policy, Refused, Spec
from .runner import Ended, how, last_words, running

if TYPE_CHECKING:
    from ...backends import Availability

PROBE = (sys.executable, "-m", "isotrain.benchmarks.harness.probe")
# Importing torch takes half a minute on a busy disk, and opening an accelerator as long again.
TIME_LIMIT = 120.0


class Checked(Part):
    name: str
    ok: bool
    detail: str


class Report(Part):
    """A device behind a backend. backend: its label; device, bfloat16 and kernels: of one that could be opened."""

    backend: str
    status: Literal["PASS", "FAIL", "absent"]
    reason: str
    fix: str
    checks: list[Checked]
    device: Device | None = None
    bfloat16: Policy | None = None
    kernels: dict[str, str] = Field(default={})


class ProbeSpec(Spec):
    name: str
    variant: int


class Probed(Part):
    """The report of a variant (None: there is no such one), and how many its backend has."""

    report: Report | None
    count: int


def examine(names: Sequence[str], time_limit: float = TIME_LIMIT) -> list[Report]:
    """A report of every device behind the backends `names`, in their order; all are examined at once."""
    first = _examined([(name, 0) for name in names], time_limit)
    # A name whose first device took its process down may have others.
    others = [
        (name, variant)
        for name, (_, count) in zip(names, first, strict=True)
        for variant in range(1, 2 if count is None else count)
    ]
    found = {name: [report] if report else [] for name, (report, _) in zip(names, first, strict=True)}
    for (name, _), (report, count) in zip(others, _examined(others, time_limit), strict=True):
        # Without a count there never was another device: the process died as the first one did.
        if report and count is not None:
            found[name].append(report)
    return [report for name in names for report in found[name]]


def _examined(devices: Sequence[tuple[str, int]], time_limit: float) -> list[tuple[Report | None, int | None]]:
    """The report of each (name, variant), and how many variants its name has; None where its process said nothing."""
    with tempfile.TemporaryDirectory(prefix="isotrain-doctor-") as folder, ExitStack() as stack:
        deadline = time.monotonic() + time_limit
        started = []
        for place, (name, variant) in enumerate(devices):
            result, log = Path(folder) / f"{place}.json", Path(folder) / f"{place}.log"
            spec = ProbeSpec(name=name, variant=variant, result=str(result))
            started.append((name, result, log, stack.enter_context(running(PROBE, spec, log, None))))
        found: list[tuple[Report | None, int | None]] = []
        for name, result, log, process in started:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except TimeoutExpired:
                reason = f"its test took longer than {time_limit:g} s"
                found.append((_failed(name, reason + last_words(log)), None))
                continue
            found.append(_answered(name, result, Ended(process.returncode, 0.0, False, log)))
        return found


def _answered(name: str, result: Path, ended: Ended) -> tuple[Report | None, int | None]:
    try:
        probed = read_answer(result, Probed)
    except (FileNotFoundError, ValueError):
        probed = None
    if probed is None or isinstance(probed, Refused):
        return _failed(name, f"its test {how(ended)}{last_words(ended.log)}"), None
    return probed.report, probed.count


def _failed(label: str, reason: str, fix: str = "check the device's driver and libraries") -> Report:
    return Report(backend=label, status="FAIL", reason=reason, fix=fix, checks=[])


def probe(spec: ProbeSpec) -> Probed:
    """The report of the device number `spec.variant` behind a backend."""
    from ...backends import backend_class

    try:
        variants = backend_class(spec.name).variants()
    except UserError as error:
        return Probed(report=_failed(spec.name, str(error), "repair or uninstall the package"), count=1)
    if spec.variant >= len(variants):
        return Probed(report=None, count=len(variants))
    label, (availability, options) = list(variants.items())[spec.variant]
    if availability.ok:
        report = _tested(spec.name, label, {spec.name: options} if options else None, availability)
    else:
        report = Report(backend=label, status="absent", reason=availability.reason, fix=availability.fix, checks=[])
    return Probed(report=report, count=len(variants))


def _tested(name: str, label: str, options: dict[str, Any] | None, availability: Availability) -> Report:
    """Opens the device and runs its self-test."""
    from ...backends import get_backend
    from ...backends.selftest import self_test

    try:
        backend = get_backend(name, options)
        checks = self_test(backend)
        return Report(
            backend=label,
            status="PASS" if all(check.ok for check in checks) else "FAIL",
            reason=availability.reason,
            fix=availability.fix,
            checks=[Checked.of(check) for check in checks],
            device=Device.of(backend.info()),
            bfloat16=Policy.of(backend.cast_policy("bfloat16")),
            kernels={
                name: f"available, {state.reason}" if state.ok else f"not here: {state.reason}"
                for name, state in backend.kernels().items()
            },
        )
    except (RuntimeError, UserError) as error:
        return _failed(label, f"the self-test failed: {error_line(error)}")


if __name__ == "__main__":
    sys.exit(answer(ProbeSpec, probe))
