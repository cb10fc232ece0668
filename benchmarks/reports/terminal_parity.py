"""A comparison's result for people: one table, the reasons, what must be known beside it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...kernels.words import count
from .fit import fitted

STYLES = {"pass": "green", "drift": "yellow", "diverged": "red", "refused": "red", "failed": "red"}


def print_parity(result: dict[str, Any], console: Console) -> None:
    """`result` (schema/parity-2.json) as text."""
    reference = result["reference"]
    console.print(
        Text(f"isotrain parity: {count(result['steps'], 'step')} against {reference['label']} ({reference['device']})")
    )
    weights = " (random weights)" if reference["random_weights"] else ""
    model = reference["model"] if weights.strip() in reference["model"] else reference["model"] + weights
    console.print(
        Text(f"model {model}; data {reference['dataset']}; same weights and batches for all, hashes compared")
    )
    for note in result["notes"]:
        console.print(Text(f"note: {note}", style="yellow"))
    console.print(fitted(_table(result), console))
    for candidate in result["candidates"]:
        if "policy" in candidate:
            console.print(Text(f"{candidate['label']}: {_described(candidate)}", style="dim"))
        for reason in candidate["reasons"]:
            console.print(Text(f"{candidate['label']}: {reason}"))
    if result["seeds"]:
        console.print(fitted(_seeds(result["seeds"]), console))


def _table(result: dict[str, Any]) -> Table:
    table = Table(title="loss parity", title_justify="left")
    table.add_column("candidate")
    table.add_column("verdict")
    table.add_column("error /\nallowed", justify="right")
    table.add_column("largest in")
    table.add_column("first\nstep", justify="right")
    table.add_column("first outside")
    for name in ("loss\nrel. L2", "logits\nrel. L2", "logits\nmax abs", "PCC", "last figure\n(reference)"):
        table.add_column(name, justify="right")
    for candidate in result["candidates"]:
        table.add_row(*map(Text, _row(candidate)), style=STYLES[candidate["verdict"]])
    return table


def _row(candidate: dict[str, Any]) -> list[str]:
    if "series" not in candidate:
        return [candidate["label"], candidate["verdict"], *["-"] * 9]
    worst = candidate["worst"]
    probe = candidate["probe"]
    # Results of earlier versions have none.
    checks = candidate.get("checks") or [{"quantity": "-", "ratio": 0.0}]
    largest = max(checks, key=lambda check: float("inf") if check["ratio"] is None else check["ratio"])
    last = candidate["metrics"][-1] if candidate["metrics"] else {}
    place = candidate.get("place", "-")
    if candidate["cause"]:
        place += f" ({candidate['cause']})"
    return [
        candidate["label"],
        candidate["verdict"],
        "not finite" if worst is None else f"{worst:.2g}",
        largest["quantity"],
        "-" if candidate["first_step"] is None else str(candidate["first_step"]),
        place,
        _small(candidate["relative_l2"]["loss"]),
        _small(probe["relative_l2"]),
        _small(probe["max_abs"]),
        "-" if probe["pcc"] is None else f"{probe['pcc']:.6f}",
        _figure(last),
    ]


def _described(candidate: dict[str, Any]) -> str:
    measured = ""
    if "error_budget" in candidate:
        measured = f"; measured by {candidate['error_budget']}, {count(candidate['draws'], 'draw')}"
    return f"{candidate['device']}, {candidate['policy']}, kernel {candidate['kernel']}{measured}"


def _small(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _figure(metrics: dict[str, Any]) -> str:
    """Accuracy where the task has it, else its first figure that is no loss."""
    names = [key for key in metrics if key not in ("epoch", "loss") and not key.startswith(("reference_", "allowed_"))]
    if not names:
        return "-"
    name = "accuracy" if "accuracy" in names else names[0]
    found, expected = (f"{value:.4f}" if value is not None else "not finite" for value in
                       (metrics[name], metrics[f"reference_{name}"]))  # fmt: skip
    return f"{name} {found} ({expected})"


def _seeds(seeds: dict[str, Any]) -> Table:
    title = f"final {seeds['metric']} over {seeds['n']} seeds: equivalent within {seeds['margin']:g}?"
    table = Table(title=title, title_justify="left")
    table.add_column("candidate")
    table.add_column("mean difference", justify="right")
    table.add_column("90 % interval", justify="right")
    table.add_column("verdict")
    for one in seeds["candidates"]:
        table.add_row(*map(Text, _test(one)))
    return table


def _test(one: dict[str, Any]) -> list[str]:
    if one["verdict"] == "failed":
        return [one["label"], "-", "-", f"failed: {one['reason']}"]
    return [one["label"], f"{one['difference']:+.4f}", f"{one['low']:+.4f} to {one['high']:+.4f}", one["verdict"]]
