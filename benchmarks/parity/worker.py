"""Traces in one fresh process: ``python -m isotrain.benchmarks.parity.worker`` with its specification on stdin.

Each job's trace appears whole or not at all. What is refused is written to the specification's result file, and the
exit code is 2; anything else is a traceback on stderr.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..harness.answer import answer
from ..harness.document import Part, Spec


class Job(Part):
    """A trace to record: its label, what its configuration is set to, and its folder."""

    label: str
    sets: list[str]
    out: str


class RecordSpec(Spec):
    """Traces of one configuration. replay_from: a trace's folder, or None; steps: the most optimizer steps."""

    config: str | None
    jobs: list[Job]
    replay_from: str | None
    steps: int | None


class Recorded(Part):
    """The answer of a worker that has recorded every job."""


def record_jobs(spec: RecordSpec) -> Recorded:
    """Records every job of `spec` in turn. Raises UserError for the first that can't be."""
    from .record import record
    from .trace import read_trace, write_trace

    reference = None if spec.replay_from is None else read_trace(Path(spec.replay_from))
    for job in spec.jobs:
        trace = record(spec.config, job.label, job.sets, replay_from=reference, steps=spec.steps)
        write_trace(trace, Path(job.out))
    return Recorded()


if __name__ == "__main__":
    sys.exit(answer(RecordSpec, record_jobs))
