"""What a training step costs through a user's workload, against ALBERT's own: ``PYTHONPATH=tests python -m
support.generic_cost``, about three minutes. Both make the same steps of the same module, in turns in one process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from isotrain.benchmarks.harness.answer import Stages
from isotrain.benchmarks.harness.module import module_target
from isotrain.benchmarks.harness.plan import OWN, Options, TargetSpec
from isotrain.benchmarks.harness.statistics import block_ratios, paired_interval
from isotrain.benchmarks.harness.worker import _open_backend, _texts_target
from isotrain.benchmarks.harness.workloads import Steps

from .albert_workload import ALBERT

SOURCE = Path(__file__).with_name("albert_workload.py")
# The processes, and the seconds in which each takes turns after its warm-up.
PROCESSES, SECONDS = 3, 25.0
# Of both targets, the seconds of each step: wall, CPU.
Times = list[list[tuple[float, float]]]


def cost_targets() -> tuple[TargetSpec, TargetSpec]:
    """ALBERT's own target, and the same as a workload."""
    own = TargetSpec("cpu", "full_step", "bucketed", "transformers", 8)
    return own, TargetSpec("cpu", "full_step", OWN, "FullStep", 0, module=f"{SOURCE}:FullStep")


def step_seconds(steps: Steps, index: int) -> tuple[float, float]:
    steps.begin()
    began = time.perf_counter_ns(), time.process_time_ns()
    steps.step(index)
    steps.fence()
    return (time.perf_counter_ns() - began[0]) / 1e9, (time.process_time_ns() - began[1]) / 1e9


def take_turns(options: Options, seconds: float) -> Times:
    """Steps of both targets in the order A B B A, two rounds a batch."""
    own, generic = cost_targets()
    backend, policy = _open_backend(options, generic, Stages(), ())
    prepared = _texts_target(options, own, Stages()), module_target(options, generic, backend, policy, Stages())
    both = [one.steps for one in prepared]
    for steps in both:
        for index in range(len(steps.classes)):
            step_seconds(steps, index)
    found: Times = [[], []]
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end or number % 2:
        for place in (0, 1) if number % 2 == 0 else (1, 0):
            found[place].append(step_seconds(both[place], number // 2 % len(both[place].classes)))
        number += 1
    return found


def main() -> int:
    if "--once" in sys.argv:
        print(json.dumps(take_turns(ALBERT, SECONDS)))
        return 0
    command = [sys.executable, "-m", "support.generic_cost", "--once"]
    every: list[Times] = []
    for _ in range(PROCESSES):
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        every.append(json.loads(done.stdout.splitlines()[-1]))
    steps = min(len(times[0]) for times in every)
    costs = []
    for what, kind in (("time", 0), ("CPU time", 1)):
        own, generic = ([[step[kind] for step in times[place][:steps]] for times in every] for place in (0, 1))
        cost = paired_interval(block_ratios(generic, own), ALBERT.seed)
        costs.append(cost)
        print(f"{what} of the generic path over ALBERT's own: {cost.median:.4f} ({cost.low:.4f} to {cost.high:.4f})")
    print(f"{ALBERT.model}, {ALBERT.dtype}, {PROCESSES} processes x {steps} steps of each in turns")
    return 0 if costs[0].low <= 1.02 else 1


if __name__ == "__main__":
    sys.exit(main())
