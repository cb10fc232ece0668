"""A profile of some steady steps of a run: a trace for Perfetto, and the operators that took most of the time."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..output.profile import Cost, costs, recorder
from ..runs.files import published, write_json
from ..tokens.order import Window
from .build import Training

log = logging.getLogger("isotrain")

SCHEMA = "isotrain.profile/1"
TRACE, OPERATORS = "trace.json.gz", "operators.json"
# Steps before the first that is profiled, where the run has as many: the first compile, capture and fill caches.
WARM_UP_STEPS = 10


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
        self._recording = recorder()
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
