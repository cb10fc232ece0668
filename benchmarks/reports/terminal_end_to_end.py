"""A result of the whole-run comparison as tables on a terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...albert_core.terminal.text import figure
from ...kernels.words import count
from .columns import ROOF_COLUMNS, Column, rate, share
from .fit import fitted
from .terminal import WIDE, peak_line

RATE_COLUMNS = (
    Column("samples/s", rate("samples_per_second"), narrow=True),
    Column("real\ntokens/s", rate("real_tokens_per_second")),
    Column("computed\ntokens/s", rate("padded_tokens_per_second")),
    Column("model\nTFLOP/s", rate("model_tflops"), narrow=True),
    Column("of\npeak", share("model"), narrow=True),
    Column("hardware\nTFLOP/s", rate("hardware_tflops"), narrow=True),
    Column("of\npeak", share("hardware")),
    *(column for column in ROOF_COLUMNS if column.narrow),
)
# What a narrow terminal leaves out of these, too.
ONLY_WIDE = ("FLOP\nper byte", "roof\nTFLOP/s")


def print_end_to_end(result: dict[str, Any], console: Console) -> None:
    """Title, a row a side of seconds and one of work, the memory, then whatever qualifies the figures."""
    config = result["config"]
    known: dict[str, Any] = next((side["processes"][0] for side in result["sides"] if side["processes"]), {})
    random = known.get("random_weights", False)
    device = known.get("device", "unknown device")
    # An emulated device's name has the backend's in it.
    where = device if device.startswith(config["backend"]) else f"{config['backend']} ({device})"
    console.print(
        Text(
            f"isotrain bench end_to_end: {count(config['epochs'], 'epoch')} at batch {config['batch_size']} with one "
            f"evaluation each, {where}",
            style="bold",
        )
    )
    console.print(Text(f"model {known.get('model', config['model'])}; {config['dtype']}; data {config['dataset']}"))
    if result["status"] == "partial":
        console.print(Text("PARTIAL: the run was interrupted; this is what was complete", style="bold red"))
    table = Table(
        title=f"end-to-end runs{' (random weights)' if random else ''}",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("what")
    for header in ("seconds", "95 % interval", "ours is faster by", "extrapolated from"):
        table.add_column(header, justify="right")
    for side in result["sides"]:
        table.add_row(*_row(side), style="" if side["valid"] else "red")
    console.print(fitted(table, console))
    if result["peaks"] is not None:
        console.print(fitted(_rates(result, random, console.width), console))
        console.print(Text(peak_line(config["backend"], result["peaks"], emulated=result["device"]["emulated"])))
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


def _rates(result: dict[str, Any], random: bool, width: int) -> Table:
    """Work over seconds, and where that stands under the device's limits."""
    table = Table(
        title=f"work and limits{' (random weights)' if random else ''}",
        title_justify="left",
        box=SIMPLE_HEAD if width >= WIDE else None,
        pad_edge=False,
        collapse_padding=True,
    )
    shown = [column for column in RATE_COLUMNS if width >= WIDE or (column.narrow and column.header not in ONLY_WIDE)]
    table.add_column("what", no_wrap=True)
    for column in shown:
        table.add_column(column.header, justify="right", overflow="fold")
    for side in result["sides"]:
        if "figures" in side:
            name = _name(side) + ("\nextrapolated" if side["extrapolated"] else "")
            table.add_row(name, *(column.cell(side) for column in shown), style="" if side["valid"] else "red")
    return table


def _energy(energy: dict[str, Any]) -> str:
    joules = energy["joules_per_sample"]
    per_text = "" if joules is None else "{} J/text ({} to {}): ".format(*map(figure, joules.values()))
    return f"energy: {per_text}{energy['source']}"


def _name(side: dict[str, Any]) -> str:
    return str(side["name"]) if side["valid"] else f"INVALID {side['name']}"


def _row(side: dict[str, Any]) -> list[str]:
    name = _name(side)
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
        lines.append(Text(f"{own['name']}: {parts}; {count(first['step'], 'step')}, accuracy {accuracy:.4f}"))
        if "energy" in own:
            lines.append(Text(_energy(own["energy"])))
    for side in result["sides"]:
        lines += [Text(f"invalid: {side['name']}: {reason}", style="red") for reason in side["reasons"]]
        lines += [Text(f"note: {side['name']}: {warning}") for warning in side["warnings"]]
    return lines + [Text(f"note: {note}") for note in result["notes"]]
