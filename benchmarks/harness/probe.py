"""The checks of `isotrain doctor`, one process per backend, so that no backend influences another.

``python -m isotrain.benchmarks.harness.probe`` examines one backend. If it crashes, hangs or exits, only its own line
says so.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Literal

from pydantic import Field

from ... import UserError
from ...albert_core.terminal.text import error_line
from .answer import answer, read_answer
from .document import Device, Part, Policy, Refused, Spec
from .runner import Ended, how, last_words, running

PROBE = (sys.executable, "-m", "isotrain.benchmarks.harness.probe")
# Importing torch takes half a minute on a busy disk, and opening an accelerator as long again.
TIME_LIMIT = 120.0


class Checked(Part):
    name: str
    ok: bool
    detail: str


class Report(Part):
    """What was found about a backend. device, bfloat16 and kernels are known if it could be opened."""

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


def examine(names: Sequence[str], time_limit: float = TIME_LIMIT) -> list[Report]:
    """Examines the backends `names` at the same time.

    Args:
        time_limit: Seconds for all of them together.

    Returns:
        Their reports, in the order of `names`.
    """
    with tempfile.TemporaryDirectory(prefix="isotrain-doctor-") as folder, ExitStack() as stack:
        deadline = time.monotonic() + time_limit
        started = []
        for place, name in enumerate(names):
            result, log = Path(folder) / f"{place}.json", Path(folder) / f"{place}.log"
            spec = ProbeSpec(name=name, result=str(result))
            started.append((name, result, log, stack.enter_context(running(PROBE, spec, log, None))))
        found = []
        for name, result, log, process in started:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except TimeoutExpired:
                reason = f"its test took longer than {time_limit:g} s"
                found.append(_failed(name, reason + last_words(log)))
                continue
            found.append(_answered(name, result, Ended(process.returncode, 0.0, False, log)))
        return found


def _answered(name: str, result: Path, ended: Ended) -> Report:
    try:
        report = read_answer(result, Report)
    except (FileNotFoundError, ValueError):
        report = None
    if report is None or isinstance(report, Refused):
        return _failed(name, f"its test {how(ended)}{last_words(ended.log)}")
    return report


def _failed(name: str, reason: str, fix: str = "check the device's driver and libraries") -> Report:
    return Report(backend=name, status="FAIL", reason=reason, fix=fix, checks=[])


def probe(spec: ProbeSpec) -> Report:
    """Opens a backend and runs its self-test, if it can run here."""
    from ...backends import backend_class, get_backend
    from ...backends.selftest import self_test

    name = spec.name
    try:
        availability = backend_class(name).probe()
    except UserError as error:
        return _failed(name, str(error), "repair or uninstall the package")
    reason, fix = availability.reason, availability.fix
    if not availability.ok:
        return Report(backend=name, status="absent", reason=reason, fix=fix, checks=[])
    try:
        backend = get_backend(name)
        checks = self_test(backend)
        return Report(
            backend=name,
            status="PASS" if all(check.ok for check in checks) else "FAIL",
            reason=reason,
            fix=fix,
            checks=[Checked.of(check) for check in checks],
            device=Device.of(backend.info()),
            bfloat16=Policy.of(backend.cast_policy("bfloat16")),
            kernels={
                name: f"available, {state.reason}" if state.ok else f"not here: {state.reason}"
                for name, state in backend.kernels().items()
            },
        )
    except (RuntimeError, UserError) as error:
        return _failed(name, f"the self-test failed: {error_line(error)}")


if __name__ == "__main__":
    sys.exit(answer(ProbeSpec, probe))
