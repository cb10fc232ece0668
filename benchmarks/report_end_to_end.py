"""A result of the whole-run comparison as a table on a terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .columns import figure


def print_end_to_end(result: dict[str, Any], console: Console) -> None:
    """Title, one row a side, the memory, then whatever qualifies the figures."""
    config = result["config"]
    known: dict[str, Any] = next((side["processes"][0] for side in result["sides"] if side["processes"]), {})
    random = known.get("random_weights", False)
    console.print(
        Text(
            f"isotrain bench end_to_end: {config['epochs']} epochs at batch {config['batch_size']} with one evaluation "
            f"each, {config['backend']} ({known.get('device', 'unknown device')})",
            style="bold",
        )
    )
    console.print(Text(f"model {known.get('model', config['model'])}; {config['dtype']}; data {config['dataset']}"))
    if result["status"] == "partial":
        console.print(Text("PARTIAL: the run was interrupted; this is what was complete", style="bold red"))
    table = Table(
        title=f"whole runs{' (random weights)' if random else ''}",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("what")
    for header in ("seconds", "95 % interval", "ours is faster by", "extrapolated from"):
        table.add_column(header, justify="right")
    for side in result["sides"]:
        table.add_row(*_row(side), style="" if side["valid"] else "red")
    console.print(table)
    if result["memory"] is not None:
        memory = {key: value / 2**20 for key, value in result["memory"].items() if key.endswith("_bytes")}
        console.print(
            Text(
                f"peak memory of {result['sides'][0]['name']}: {figure(memory['peak_bytes'])} MiB, "
                f"{figure(memory['above_import_bytes'])} MiB above a process that only imports torch "
                f"({figure(memory['import_torch_bytes'])} MiB)"
            )
        )
    for line in _details(result):
        console.print(line)


def _row(side: dict[str, Any]) -> list[str]:
    name = side["name"] if side["valid"] else f"INVALID {side['name']}"
    if "seconds" not in side:
        return [name, "none", "", "", ""]
    seconds, ratio, part = side["seconds"], side.get("ratio"), side.get("from")
    return [
        name,
        figure(seconds["median"]) + (" extrapolated" if side["extrapolated"] else ""),
        f"{figure(seconds['low'])} to {figure(seconds['high'])}",
        "" if ratio is None else f"{ratio['median']:.1f}x ({ratio['low']:.1f} to {ratio['high']:.1f}) extrapolated",
        ""
        if part is None
        else f"{part['steps']:,} of {part['of_steps']:,} steps, {part['validation_batches']:,} of "
        f"{part['of_validation_batches']:,} validation batches",
    ]


def _details(result: dict[str, Any]) -> list[Text]:
    own = result["sides"][0]
    lines = []
    if own["processes"]:
        first = own["processes"][0]
        parts = ", ".join(f"{name} {figure(seconds)} s" for name, seconds in first["phases"].items())
        accuracy = first["metrics"]["eval/accuracy"]
        lines.append(Text(f"{own['name']}: {parts}; {first['step']:,} steps, accuracy {accuracy:.4f}"))
    for side in result["sides"]:
        lines += [Text(f"invalid: {side['name']}: {reason}", style="red") for reason in side["reasons"]]
    return lines + [Text(f"note: {note}") for note in result["notes"]]
