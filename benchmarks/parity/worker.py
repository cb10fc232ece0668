"""Records traces in one fresh process: ``python -m isotrain.benchmarks.parity.worker``, with a specification on stdin.

Each trace appears whole or not at all. A UserError is written to the specification's result file, with exit code 2. Any
other error is a traceback on stderr.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..harness.answer import answer
from ..harness.document import Part, Spec


class Job(Part):
    """A trace to record: its label, its settings of the configuration, and its folder."""

    label: str
    sets: list[str]
    out: str


class RecordSpec(Spec):
    """Traces of one configuration. replay_from: the folder of a reference; steps: the most optimizer steps."""

    config: str | None
    jobs: list[Job]
    replay_from: str | None
    steps: int | None


class Recorded(Part):
    """The answer of a worker that has recorded every job."""


def record_jobs(spec: RecordSpec) -> Recorded:
    """Records every job of `spec` in turn.

    Raises:
        UserError: A job can't be recorded.
    """
    from .record import record
    from .trace import read_trace, write_trace

    reference = None if spec.replay_from is None else read_trace(Path(spec.replay_from))
    for job in spec.jobs:
        trace = record(spec.config, job.label, job.sets, replay_from=reference, steps=spec.steps)
        write_trace(trace, Path(job.out))
    return Recorded()


if __name__ == "__main__":
    sys.exit(answer(RecordSpec, record_jobs))
