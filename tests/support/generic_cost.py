"""What a training step costs through a user's workload, against ALBERT's own: ``PYTHONPATH=tests python -m
support.generic_cost``. Both make the same steps of the same module, in interleaved processes.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from isotrain.benchmarks.harness.plan import OWN, Options, Plan, TargetSpec
from isotrain.benchmarks.harness.runner import WorkerRun, run_workers
from isotrain.benchmarks.harness.statistics import ratio_interval
from isotrain.benchmarks.harness.turns import interleaved

SOURCE = Path(__file__).with_name("albert_workload.py")


def cost_plan(options: Options) -> Plan:
    """ALBERT's own target, and the same as a workload."""
    own = TargetSpec("cpu", "full_step", "bucketed", "transformers", 8)
    generic = TargetSpec("cpu", "full_step", OWN, "FullStep", 0, module=f"{SOURCE}:FullStep")
    return Plan(options, (own, generic), tuple(interleaved(2, options.processes, options.seed)))


def main() -> int:
    options = Options(model="random:albert-base-v2", dtype="float32", processes=6)
    if "--quick" in sys.argv:
        options = replace(options, processes=1, blocks=3, seconds=3.0)
    runs: list[WorkerRun] = []
    for run in run_workers(cost_plan(options), lambda _, __: None):
        print(f"{('own', 'generic')[run.target]}: {run.error or f'{run.seconds:.0f} s'}", flush=True)
        runs.append(run)
    own, generic = (
        [run.document for run in runs if run.target == target and run.document is not None] for target in (0, 1)
    )
    print("first losses:", own[0].losses, generic[0].losses)
    cost = ratio_interval([one.step_seconds for one in generic], [one.step_seconds for one in own], options.seed)
    print(f"generic over own: {cost.median:.4f} ({cost.low:.4f} to {cost.high:.4f})")
    return 0 if cost.low <= 1.02 else 1


if __name__ == "__main__":
    sys.exit(main())
