"""A profile of steps as blocks: what its named ranges and operators cost in a mean step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ....albert_core.terminal.text import figure
from ....kernels.words import count
from ..blocks import Block, Column, Heading, Table, Words


class Cost(Protocol):
    """Milliseconds of a mean step, on host and device."""

    @property
    def name(self) -> str: ...

    @property
    def calls(self) -> float: ...

    @property
    def host_ms(self) -> float: ...

    @property
    def device_ms(self) -> float: ...


class Profile(Protocol):
    """A profile in memory, in a run's folder, or in a result."""

    @property
    def steps(self) -> int: ...

    @property
    def ranges(self) -> Sequence[Cost]: ...

    @property
    def operators(self) -> Sequence[Cost]: ...


def profile_view(profile: Profile, of: str) -> list[Block]:
    """Ranges in a step's order, then the dearest operators. The profiler itself slows a step down.

    Args:
        of: What was profiled, on what.
    """
    on_device = any(cost.device_ms for cost in (*profile.ranges, *profile.operators))
    dearest = sorted(profile.operators, key=lambda cost: cost.device_ms if on_device else cost.host_ms, reverse=True)
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
    if profile.ranges:
        blocks.append(Table("Parts of a step", columns, profile.ranges))
    own = (*columns, Column[Cost]("of these", share))
    return [*blocks, Table("Operators, without those they call", own, dearest)]
