"""A profile of steps as blocks: what its named ranges and operators cost in a mean step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ....albert_core.output.profile import Cost as StepCost
from ....albert_core.terminal.text import figure
from ....kernels.words import count
from ...harness.document import Profile, RangeCost
from ...outcome.training_run import RunProfile
from ..blocks import Block, Column, Heading, Table, Words

if TYPE_CHECKING:
    from ....albert_core.loop.profile import Profile as StepProfile

Cost = RangeCost | StepCost


def profile_view(profile: Profile | RunProfile | StepProfile, of: str) -> list[Block]:
    """Ranges in a step's order, then the dearest operators. The profiler itself slows a step down.

    Args:
        of: What was profiled, on what.
    """
    ranges: Sequence[Cost] = profile.ranges
    operators: Sequence[Cost] = profile.operators
    on_device = any(cost.device_ms for cost in (*ranges, *operators))
    dearest = sorted(operators, key=lambda cost: cost.device_ms if on_device else cost.host_ms, reverse=True)
    everything = sum(cost.device_ms if on_device else cost.host_ms for cost in dearest)

    def share(cost: Cost) -> str:
        own = cost.device_ms if on_device else cost.host_ms
        return f"{own / everything:.1%}" if everything else ""

    columns = (
        Column[Cost]("", lambda cost: cost.name, numeric=False),
        Column[Cost]("calls a step", lambda cost: figure(cost.calls)),
        Column[Cost]("host ms", lambda cost: figure(cost.host_ms)),
        *([Column[Cost]("device ms", lambda cost: figure(cost.device_ms))] if on_device else []),
    )
    blocks: list[Block] = [
        Heading(f"Profile of {count(profile.steps, 'step')}: {of}"),
        Words("Mean of a step, while the profiler recorded: its shares count, not its seconds."),
    ]
    if ranges:
        blocks.append(Table("Parts of a step", columns, ranges))
    own = (*columns, Column[Cost]("of these", share))
    return [*blocks, Table("Operators, without those they call", own, dearest)]
