"""A profile of some steady steps of a run: a trace for Perfetto, and the operators that took most of the time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..runs.files import published, write_json
from ..tokens.order import Window
from .build import Training

log = logging.getLogger("isotrain")

SCHEMA = "isotrain.profile/1"
TRACE, OPERATORS = "trace.json.gz", "operators.json"
# Steps before the first that is profiled, where the run has as many: the first compile, capture and fill caches.
WARM_UP_STEPS = 10
# The named ranges of a step, in its order; everything else is an operator.
RANGES = ("copy", "encoder", "head", "backward", "optimizer", "fused head step", "fence")
MOST_OPERATORS = 20


@dataclass(frozen=True)
class Cost:
    """Milliseconds of one step in a named range, or in an operator without those it calls, on host and device."""

    name: str
    calls: float
    host_ms: float
    device_ms: float


@dataclass(frozen=True)
class Profile:
    """What was written to `folder`: the trace, and the costs of a mean step."""

    folder: Path
    steps: int
    device: str
    ranges: tuple[Cost, ...]
    operators: tuple[Cost, ...]


class StepProfiler:
    """An observer of training that profiles `steps` steps, once it has made some.

    Attributes:
        profile: What it found; None until then.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.profile: Profile | None = None
        self._made, self._skip = 0, WARM_UP_STEPS
        self._recording: Any = None

    def started(self, training: Training) -> None:
        left = training.total_steps - training.state.step
        self.steps = min(self.steps, left)
        self._skip = min(WARM_UP_STEPS, left - self.steps)
        if self._skip < WARM_UP_STEPS:
            log.warning(
                "the profile begins after %d of the %d steps that it should wait for: the run has %d left",
                self._skip,
                WARM_UP_STEPS,
                left,
            )
        if self._skip == 0 and self.steps:
            self._start(training)

    def stepped(self, training: Training, window: Window, sums: torch.Tensor) -> None:
        del window, sums
        self._made += 1
        if self._recording is not None:
            self._recording.step()
            if self._made == self._skip + self.steps:
                self._stop(training)
        elif self._made == self._skip and self.steps:
            self._start(training)

    def evaluated(self, training: Training, epoch: int) -> None:
        del training, epoch

    def _start(self, training: Training) -> None:
        training.job.backend.synchronize(*training.model.parameters())
        self._recording = torch.profiler.profile(
            activities=torch.profiler.supported_activities(), record_shapes=True, profile_memory=True
        )
        self._recording.start()

    def _stop(self, training: Training) -> None:
        backend = training.job.backend
        with backend.named_range("fence"):
            backend.synchronize(*training.model.parameters())
        recording, self._recording = self._recording, None
        recording.stop()
        folder = training.run.path / f"profile-{training.state.step:08d}"
        ranges, operators = costs(recording.key_averages(), self.steps)
        device = backend.info().name + backend.on_caveat
        self.profile = Profile(folder, self.steps, device, ranges, operators)
        if folder.exists():
            log.warning("%s is there from an earlier attempt and is kept; the new profile is shown only", folder)
            return
        with published(folder) as temporary:
            recording.export_chrome_trace(str(temporary / TRACE))
            found = asdict(self.profile) | {"schema": SCHEMA, "step": training.state.step}
            del found["folder"]
            write_json(temporary / OPERATORS, found)


def costs(averages: Sequence[Any], steps: int) -> tuple[tuple[Cost, ...], tuple[Cost, ...]]:
    """The named ranges in a step's order, and the operators that took longest.

    Args:
        averages: A torch profiler's ``key_averages()``.
    """
    ranges: list[Cost] = []
    operators: list[Cost] = []
    for event in averages:
        if event.key in RANGES:
            host, device = event.cpu_time_total, event.device_time_total
        elif event.key.startswith("ProfilerStep"):
            continue
        else:
            host, device = event.self_cpu_time_total, event.self_device_time_total
        found = ranges if event.key in RANGES else operators
        found.append(Cost(event.key, event.count / steps, host / 1e3 / steps, device / 1e3 / steps))
    ranges.sort(key=lambda cost: RANGES.index(cost.name))
    operators.sort(key=lambda cost: (cost.device_ms, cost.host_ms), reverse=True)
    return tuple(ranges), tuple(operators[:MOST_OPERATORS])
