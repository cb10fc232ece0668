"""The process of a stage, which ends with its parent: ``python -m isotrain.benchmarks.gpu_check.stage``.

With arguments, it runs `isotrain` with these. Without any, it reads from stdin what to measure.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ...albert_core.processes.parent import end_with_parent
from ...albert_core.runs.files import write_json
from ...backends import get_backend
from ..end_to_end.peak_memory import run_isotrain
from ..harness import environment
from ..harness.answer import answer, read_answer
from ..harness.document import Device, Part
from .result import MeasureSpec, Opened


def measure(spec: MeasureSpec) -> Part:
    """What `spec` asks for. Throughput and operators are in its file before the last of it is measured."""
    from ..harness.peaks import measure_peaks
    from .inputs import TINY, Inputs, Size
    from .operators import time_operators
    from .throughput import measure_throughput

    inputs = Inputs(get_backend(spec.backend), TINY if spec.tiny else Size())
    if spec.what == "peaks":
        return Opened(
            device=Device.of(inputs.backend.info()),
            peaks=measure_peaks(inputs.backend, inputs.policy.compute),
            environment=environment.describe(),
        )

    def keep(found: Part) -> None:
        write_json(Path(spec.result), found.document())

    if spec.what == "operators":
        return time_operators(inputs, spec.compiled, keep)
    opened = read_answer(Path(spec.peaks), Opened) if Path(spec.peaks).is_file() else None
    known = [opened.peaks] if isinstance(opened, Opened) else []
    return measure_throughput(inputs, spec.compiled, keep, known)


def main() -> int:
    if not sys.argv[1:]:
        return answer(MeasureSpec, measure)
    end_with_parent()
    run_isotrain(sys.argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
