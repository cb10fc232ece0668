"""Steps under torch's profiler: a trace that Perfetto reads, and what named parts and operators cost."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runs.files import written

# The named ranges of a step, in its order; everything else is an operator.
RANGES = ("copy", "encoder", "head", "loss", "backward", "optimizer", "fused head step", "fence")
MOST_OPERATORS = 20
# A trace of more steps has gigabytes.
MOST_PROFILED = 100


@dataclass(frozen=True)
class Cost:
    """Milliseconds of one step in a named range, or in an operator without those it calls, on host and device."""

    name: str
    calls: float
    host_ms: float
    device_ms: float


def recorder() -> Any:
    """A profiler of everything that torch can see here, with each allocation."""
    import torch

    activities = torch.profiler.supported_activities()
    return torch.profiler.profile(activities=activities, record_shapes=True, profile_memory=True)


def record_steps(
    step: Callable[[int], object], fence: Callable[[], object], steps: int, trace: Path
) -> tuple[tuple[Cost, ...], tuple[Cost, ...]]:
    """Profiles `steps` calls of `step` and a fence.

    Args:
        trace: The file for Perfetto, which ends in .json.gz.

    Returns:
        The costs of a mean step: those of its named ranges, and of its operators.
    """
    fence()
    with recorder() as recording:
        for number in range(steps):
            step(number)
            recording.step()
        fence()
    with written(trace) as file, tempfile.TemporaryDirectory(prefix="isotrain-profile-") as folder:
        # torch writes to a name only.
        recording.export_chrome_trace(str(Path(folder, trace.name)))
        file.write(Path(folder, trace.name).read_bytes())
    return costs(recording.key_averages(), steps)


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
