"""Records traces in one fresh process: ``python -m isotrain.benchmarks.parity.worker``, with a specification on stdin.

Each trace appears whole or not at all. A UserError is written to the specification's result file, with exit code 2. Any
other error is a traceback on stderr.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from ...albert_core.output.progress import Reporter
from ...albert_core.terminal.text import duration
from ..harness.answer import answer
from ..harness.document import Part, Spec
from ..harness.runner import PROGRESS

# Seconds between two lines about a phase: at least the first number, and this share of what it has taken.
LEAST_PAUSE, PAUSE_SHARE = 5.0, 0.1


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


class PipeReporter(Reporter):
    """Tells the parent how far a phase is, seldom enough that an hour makes some tens of lines.

    The time left is estimated without the first step, which may compile.
    """

    def __init__(self, stream: TextIO, prefix: str = "") -> None:
        self._stream, self._prefix = stream, prefix

    def phase(self, name: str) -> Callable[[int, int], None]:
        began = time.monotonic()
        last = began
        first: tuple[int, float] | None = None

        def advance(done: int, total: int) -> None:
            nonlocal first, last
            now = time.monotonic()
            first = first or (done, now)
            if 0 < done < total and now - last >= max(LEAST_PAUSE, PAUSE_SHARE * (now - began)):
                last = now
                later = done - first[0]
                left = f", about {duration((now - first[1]) / later * (total - done))} left" if later else ""
                # The parent may be gone.
                with suppress(OSError):
                    self._stream.write(f"{self._prefix}{name} {done:,} of {total:,}{left}\n")
                    self._stream.flush()

        return advance


@contextmanager
def _told() -> Iterator[TextIO | None]:
    """The pipe to the parent; None if it doesn't listen."""
    descriptor = os.environ.get(PROGRESS)
    if descriptor is None:
        yield None
        return
    os.set_inheritable(int(descriptor), False)
    with os.fdopen(int(descriptor), "w", encoding="utf-8") as stream:
        yield stream


def record_jobs(spec: RecordSpec) -> Recorded:
    """Records every job of `spec` in turn.

    Raises:
        UserError: A job can't be recorded.
    """
    from .recording.record import record
    from .trace import read_trace, write_trace

    reference = None if spec.replay_from is None else read_trace(Path(spec.replay_from))
    with _told() as stream:
        for number, job in enumerate(spec.jobs, start=1):
            prefix = f"draw {number} of {len(spec.jobs)}, " if len(spec.jobs) > 1 else ""
            reporter = Reporter() if stream is None else PipeReporter(stream, prefix)
            trace = record(spec.config, job.label, job.sets, replay_from=reference, steps=spec.steps, reporter=reporter)
            write_trace(trace, Path(job.out))
    return Recorded()


if __name__ == "__main__":
    sys.exit(answer(RecordSpec, record_jobs))
