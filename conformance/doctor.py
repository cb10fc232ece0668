"""`isotrain doctor`: a few checks of each backend, each backend in its own process, so that none influences another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal

from pydantic import Field

from ..backends import backend_traits, is_built_in
from ..benchmarks.harness.document import ChoiceMade, Device, Part, Peaks, Policy
from ..benchmarks.outcome.conformance import Judged
from .messages import PEAKS, SUPPORT, Described, Measured, Opening
from .process import LostError, Worker

# Quick ones of what every training needs.
CHECKS = ("device/place-bits", "operations/matmul/float32", "operations/linear/float32/grad")
# Importing torch takes half a minute on a busy disk, and opening an accelerator as long again.
TIME_LIMIT = 120.0


class Checked(Part):
    name: str
    ok: bool
    detail: str


class Report(Part):
    """What was found about a backend. device, bfloat16, kernels and lacks are known if it could be opened.

    peaks: if they were asked for, those of a device that passes.
    """

    backend: str
    status: Literal["PASS", "FAIL", "absent"]
    reason: str
    fix: str
    checks: list[Checked]
    device: Device | None = None
    bfloat16: Policy | None = None
    kernels: dict[str, str] = Field(default={})
    lacks: list[str] = Field(default=[])
    choices: list[ChoiceMade] = Field(default=[])
    peaks: list[Peaks] = Field(default=[])
    untested: bool = Field(default=False)


def examine(names: Sequence[str], time_limit: float = TIME_LIMIT, *, peaks: bool = False) -> list[Report]:
    """Examines the backends `names`. All are opened at the same time.

    Args:
        time_limit: Seconds for all of them together, and for all of their peaks.
        peaks: Whether to measure peaks: one backend after the other, when nothing else runs.

    Returns:
        Their reports, in the order of `names`.
    """
    with ExitStack() as stack:
        deadline = time.monotonic() + time_limit
        workers = [stack.enter_context(Worker(name, {}, 0)) for name in names]
        reports = [_examined(name, worker, deadline, time_limit) for name, worker in zip(names, workers, strict=True)]
        if peaks:
            deadline = time.monotonic() + time_limit
            reports = [_measured(*pair, deadline, time_limit) for pair in zip(reports, workers, strict=True)]
    return [report.model_copy(update={"untested": _untested(report)}) for report in reports]


def _untested(report: Report) -> bool:
    if report.device is not None:
        return report.device.untested
    # A package's module isn't imported here: it may hang, or end the process.
    return is_built_in(report.backend) and backend_traits(report.backend).untested


def _examined(name: str, worker: Worker, deadline: float, time_limit: float) -> Report:
    try:
        opening = worker.hear(Opening, _left(deadline))
        if opening.status != "open":
            return unopened(name, opening)
        described = worker.ask(SUPPORT, Described, _left(deadline))
        found = {check: worker.ask(check, Judged, _left(deadline)) for check in CHECKS}
    except LostError as error:
        return _failed(name, f"its test {_how(error, time_limit)}")
    return opened(name, opening, described, found)


def _measured(report: Report, worker: Worker, deadline: float, time_limit: float) -> Report:
    """The report with the peaks of a device that passes."""
    if report.status != "PASS":
        return report
    try:
        found = worker.ask(PEAKS, Measured, _left(deadline))
    except LostError as error:
        return _failed(report.backend, f"the measurement of its peaks {_how(error, time_limit)}")
    return report.model_copy(update={"peaks": found.peaks, "lacks": [*report.lacks, *found.lacks]})


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _how(error: LostError, time_limit: float) -> str:
    """What became of a worker, as a verb phrase."""
    return f"took longer than {time_limit:g} s{error.last_words}" if error.status == "hang" else str(error)


def unopened(name: str, opening: Opening) -> Report:
    """The report of a backend that can't be opened."""
    if opening.status == "absent":
        return Report(backend=name, status="absent", reason=opening.reason, fix=opening.fix, checks=[])
    return _failed(name, opening.reason, opening.fix)


def opened(name: str, opening: Opening, described: Described, found: dict[str, Judged]) -> Report:
    """The report of an open backend, which passes unless a check fails."""
    support = described.support
    if support is None:
        return _failed(name, f"it can't describe itself: {described.problem}")
    policy = support.dtypes["bfloat16"]
    checks = [
        Checked(name=check, ok=judged.status in ("pass", "unsupported"), detail=_detail(judged))
        for check, judged in found.items()
    ]
    return Report(
        backend=name,
        status="PASS" if all(check.ok for check in checks) else "FAIL",
        reason=opening.reason,
        fix=opening.fix,
        checks=checks,
        device=support.device,
        bfloat16=None if isinstance(policy, str) else policy,
        kernels=support.kernels,
        lacks=support.lacks,
        choices=support.choices,
    )


def _detail(judged: Judged) -> str:
    share = "" if judged.share is None else f"{judged.share:.0%} of the error budget"
    return judged.detail or share or judged.status


def _failed(name: str, reason: str, fix: str = "") -> Report:
    return Report(
        backend=name, status="FAIL", reason=reason, fix=fix or "check the device's driver and libraries", checks=[]
    )
