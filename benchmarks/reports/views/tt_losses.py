"""What a Tenstorrent card's arithmetic costs a job, as blocks: a table of each kind of variant, and a chart."""

from __future__ import annotations

from ....albert_core.output.charts import Bar, BarChart
from ....albert_core.terminal.text import figure
from ....kernels.words import count
from ...tt_losses import Cost, Kind, TtLosses
from ..blocks import Block, Column, Heading, Section, Table, Words

TABLES: dict[Kind, str] = {
    "finer": "With one setting at its finest",
    "other": "With one other setting",
    "host": "Without the card's arithmetic",
}
GROUPS: dict[Kind, str] = {
    "configured": "as configured",
    "alone": "one operation alone",
    "without": "all but one operation",
    "finer": "one setting at its finest",
    "other": "another setting",
    "host": "no card",
}


def tt_losses_view(found: TtLosses) -> list[Block]:
    """The tables: operations by what each costs, then settings by what they leave."""
    blocks: list[Block] = [Heading(f"{found.label}: {found.arithmetic}"), Words(_what(found))]
    if not found.complete:
        blocks.append(Words("Interrupted: not all variants are here.", "yellow"))
    without = {cost.name: cost for cost in found.costs if cost.kind == "without"}
    alone = [cost for cost in reversed(found.costs) if cost.kind == "alone"]

    def in_float32(cost: Cost) -> str:
        return _distance(without[cost.name]) if cost.name in without else ""

    operations = (
        Column[Cost]("operation", lambda cost: cost.name, numeric=False),
        Column[Cost]("only it the card's", _distance),
        Column[Cost]("of the configured", lambda cost: _share(cost, found)),
        Column[Cost]("only it in float32", in_float32),
        Column[Cost]("setting of the latter", lambda cost: f"tt.float32={cost.name}", numeric=False, least_width=100),
    )
    if alone:
        blocks.append(Table("What each operation costs, by distance", operations, alone))
    columns = (
        Column[Cost]("variant", lambda cost: cost.name, numeric=False),
        Column[Cost]("distance", _distance),
        Column[Cost]("of the configured", lambda cost: _share(cost, found)),
        Column[Cost]("setting", lambda cost: cost.sets[-1], numeric=False, least_width=100),
    )

    def style(cost: Cost) -> str:
        """Grey for what can't be told apart from the configured arithmetic."""
        if cost.distance is None or not found.configured:
            return "red" if cost.reason else ""
        return "dim" if abs(cost.distance / found.configured - 1) < found.chance else ""

    for kind, title in TABLES.items():
        rows = [cost for cost in found.costs if cost.kind == kind]
        if rows:
            blocks.append(Table(title, columns, rows, style))
    return blocks


def tt_losses_section(found: TtLosses) -> Section:
    """The tables and the chart, as a page shows them."""
    order = list(GROUPS)
    bars = tuple(
        Bar(
            cost.name + {"alone": " alone", "without": " in float32"}.get(cost.kind, ""),
            *(cost.distance or 0.0,) * 3,
            style=order.index(cost.kind),
            words=cost.reason,
            empty=cost.distance is None,
        )
        for cost in found.costs
    )
    chart = BarChart(
        "tt-losses",
        f"Distance of the losses from float64's: {found.label}",
        "Shorter is nearer to float64.",
        "nats",
        bars,
        tuple(GROUPS.values()),
    )
    return Section("losses", "What the card's arithmetic costs", [chart, *tt_losses_view(found)])


def _what(found: TtLosses) -> str:
    configured = found.costs[0]
    return (
        f"Losses of {count(found.steps, 'step')}; their distance from float64's is a root mean square in nats, as "
        f"configured {_distance(configured)}. Differences below {found.chance:.0%} may be chance (grey)."
    )


def _distance(cost: Cost) -> str:
    return cost.reason if cost.distance is None else figure(cost.distance)


def _share(cost: Cost, found: TtLosses) -> str:
    return "" if cost.distance is None or not found.configured else f"{cost.distance / found.configured:.0%}"
