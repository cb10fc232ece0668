"""What a benchmark would run, as blocks."""

from __future__ import annotations

from ...harness.plan import Plan
from ..blocks import Block, Column, Table, Words


def plan_view(plan: Plan) -> list[Block]:
    """What would run, in its order, and how long that takes at least."""
    targets, options = plan.targets, plan.options
    columns = (
        Column[tuple[int, int, int]]("#", lambda one: str(one[0])),
        Column[tuple[int, int, int]]("target", lambda one: targets[one[1]].label, numeric=False),
        Column[tuple[int, int, int]](
            "pair" if plan.paired else "process", lambda one: f"{one[2] + 1} of {options.processes}"
        ),
    )
    places = [(place, target, process) for place, (target, process) in enumerate(plan.order, start=1)]
    kernels = [f"{spec.kernel} {spec.dtype}".rstrip() for spec in targets]
    lines = [f"left out: {line}" for line in plan.skipped]
    for target, shapes in plan.candidates.items():
        listed = ", ".join(f"{shape.layout} x{shape.batch_size}" for shape in shapes)
        lines.append(f"before that, a sweep picks the shape of {kernels[target]}: {listed}")
    for target, reason in plan.unavailable.items():
        lines.append(f"unavailable: {kernels[target]}: {reason}")
    return [Table("Plan", columns, places), *map(Words, lines), Words(plan.outlook)]
