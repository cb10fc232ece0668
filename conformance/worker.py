"""A process that opens one backend and runs checks on it: ``python -m isotrain.conformance.worker``.

It reads a specification from stdin, then requests from a pipe, one a line. It answers each with a line of JSON on
another pipe. What the backend prints doesn't get between them.
"""

from __future__ import annotations

import atexit
import gc
import math
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TextIO

from .. import UserError
from ..albert_core.processes.parent import end_with_parent
from ..albert_core.terminal.text import error_line, shorten
from ..backends import DTYPES, EIGHT_BIT, Backend, backend_class, get_backend, resolve
from ..benchmarks.harness.document import ChoiceMade, Part, Policy
from ..benchmarks.harness.document import Device as DeviceInfo
from ..benchmarks.outcome.conformance import Judged, Support
from .messages import PEAKS, SUPPORT, Described, Measured, Opening, WorkerSpec

if TYPE_CHECKING:
    from .case import Case, Device

LONGEST_DETAIL = 400
# The dtypes whose peaks are worth seconds of measurement.
PEAK_DTYPES = ("float32", "bfloat16", "int8")


def main() -> int:
    """Answers requests until there are no more. Returns the exit code."""
    end_with_parent()
    # At its end, the interpreter looks for garbage in all that was imported; torch takes it a second.
    atexit.register(gc.freeze)
    spec = WorkerSpec.model_validate_json(sys.stdin.read())
    for end in (spec.requests, spec.answers):
        # Otherwise a child that outlives this process would keep the pipes open.
        os.set_inheritable(end, False)
    with os.fdopen(spec.requests) as requests, os.fdopen(spec.answers, "w") as answers:
        opening, device = open_device(spec.backend, spec.options, spec.seed, spec.sets)
        # All that a check needs is imported now, so that its time limit is its own.
        known = {} if device is None else _cases()
        _say(answers, opening)
        for line in requests if device is not None else ():
            assert device is not None, "the loop runs only if it is open"
            _say(answers, _answer(line.strip(), known, device))
    return 0


def _answer(request: str, known: Mapping[str, Case], device: Device) -> Part:
    if request == SUPPORT:
        return describe(device)
    return measure(device) if request == PEAKS else judge(known[request], device)


def _cases() -> dict[str, Case]:
    from .catalogue import cases

    return {case.name: case for case in cases()}


def _say(answers: TextIO, part: Part) -> None:
    answers.write(part.model_dump_json(by_alias=True, exclude_unset=True) + "\n")
    answers.flush()


def open_device(
    name: str, options: dict[str, Any], seed: int, sets: Sequence[str] = ()
) -> tuple[Opening, Device | None]:
    """Opens a backend for its checks; the device is None unless the status is "open". `sets`: see `WorkerSpec`."""
    base, _, index = name.partition(":")
    try:
        kind = backend_class(base)
    except UserError as error:
        return Opening(status="FAIL", reason=str(error), fix="repair or uninstall the package"), None
    try:
        found = kind.probe()
        if not found.ok:
            return Opening(status="absent", reason=found.reason, fix=found.fix), None
        # Importing torch takes seconds, which nobody waits for where the backend is absent.
        from .case import Device

        if sets:
            from ..albert_core.config.backend import backend_options

            options = options | backend_options(sets)
        device = Device(get_backend(name, options), seed, resolve(base, options))
    except UserError as error:
        if index or options or sets:
            return Opening(status="refused", reason=str(error)), None
        return Opening(status="FAIL", reason=f"the probe says that it can run here, but {error_line(error)}"), None
    except Exception as error:  # noqa: BLE001 (whatever a backend raises is a finding)
        return Opening(status="FAIL", reason=_raised(error)), None
    return Opening(status="open", reason=found.reason, fix=found.fix, options=options), device


def describe(device: Device) -> Described:
    """Asks the backend for its device, dtypes, kernels and what it lacks."""
    backend = device.backend

    def policy(dtype: str) -> Policy | str:
        try:
            return Policy.of(backend.cast_policy(dtype))
        except UserError as error:
            return str(error)

    try:
        support = Support(
            device=DeviceInfo.of(backend.info()),
            dtypes={dtype: policy(dtype) for dtype in (*DTYPES, *EIGHT_BIT)},
            kernels={
                name: f"available, {state.reason}" if state.ok else f"not here: {state.reason}"
                for name, state in backend.kernels().items()
            },
            lacks=_lacks(backend),
            choices=[ChoiceMade.of(chosen) for chosen in backend.choices(kept=True)],
        )
    except Exception as error:  # noqa: BLE001 (whatever a backend raises is a finding)
        return Described(support=None, problem=_raised(error))
    return Described(support=support)


def measure(device: Device) -> Measured:
    """Measures the device's peaks in each of PEAK_DTYPES that it computes in. An emulated device has none."""
    from ..benchmarks.harness.peaks import measure_peaks

    backend = device.backend
    peaks, lacks = [], []
    for dtype in PEAK_DTYPES if not backend.caveat else ():
        try:
            if backend.cast_policy(dtype).compute == dtype:
                peaks.append(measure_peaks(backend, dtype))
        except UserError:
            continue
        except Exception as error:  # noqa: BLE001 (whatever a backend raises is a finding)
            lacks.append(f"a peak in {dtype} ({_raised(error)})")
    return Measured(peaks=peaks, lacks=lacks)


def _lacks(backend: Backend) -> list[str]:
    try:
        uncounted = backend.memory().missing
    except Exception:  # noqa: BLE001 (the check of memory() says what it raises)
        uncounted = ""
    lacking = {
        "memory counters": uncounted,
        "a generator's state": backend.unsaved_generator(),
        "several processes": "" if backend.traits.process_group else "its traits name no process group",
    }
    return [f"{what} ({why})" for what, why in lacking.items() if why]


def judge(case: Case, device: Device) -> Judged:
    """Runs one check. It begins with the same random numbers, whatever ran before it."""
    import torch

    from .case import UnsupportedError, ViolationError

    torch.manual_seed(device.seed)
    try:
        passed = case.run(device)
    except ViolationError as error:
        return _judged("FAIL", error.share, str(error))
    except UnsupportedError as error:
        return _judged("unsupported", None, str(error))
    except Exception as error:  # noqa: BLE001 (whatever a backend raises is a finding)
        return _judged("FAIL", None, _raised(error))
    judged = _judged("pass", passed.share, passed.detail)
    more = {"lacks": shorten(passed.lacks, LONGEST_DETAIL), "rate": passed.rate}
    return judged.model_copy(update={name: value for name, value in more.items() if value})


def _judged(status: Literal["pass", "FAIL", "unsupported"], share: float | None, detail: str) -> Judged:
    known = share is not None and math.isfinite(share)
    return Judged(status=status, share=share if known else None, detail=shorten(detail, LONGEST_DETAIL))


def _raised(error: Exception) -> str:
    """An error that a backend shouldn't have raised, and the function that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"raised {error_line(error)} (in {frames[-1].name})" if frames else f"raised {error_line(error)}"


if __name__ == "__main__":
    sys.exit(main())
