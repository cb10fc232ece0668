"""`isotrain tt-formats`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..documents import print_json

if TYPE_CHECKING:
    from rich.table import Table

    from ...kernels.tt.losses import TensorLoss


def tt_formats(
    weights: Annotated[
        Path, typer.Argument(metavar="FILE.npz|CHECKPOINT", help=".npz, .safetensors, checkpoint or run folder.")
    ],
    dtypes: Annotated[
        list[str] | None, typer.Option("--dtype", help="bfloat16, bfp_bf8 or bfp_bf4; all when absent.")
    ] = None,
    fidelities: Annotated[
        list[str] | None, typer.Option("--fidelity", help="lofi, hifi2, hifi3 or hifi4; all when absent.")
    ] = None,
    block_axis: Annotated[
        str | None,
        typer.Option(
            help="Dimension along which 16 values share an exponent: first (torch's linear weights) or last. "
            "Default: last for .npz, else first."
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a set of weights loses in each Tenstorrent format and math fidelity. Nothing runs on a card.

    Examples:

      isotrain tt-formats weights.npz

      isotrain tt-formats runs/banking77-... --dtype bfp_bf4 --fidelity lofi
    """
    from ... import UserError
    from ...albert_core.runs.weight_files import weight_tensors
    from ...kernels.tt.formats import WEIGHT_DTYPES
    from ...kernels.tt.losses import READ_BITS, format_losses

    axis = block_axis or ("last" if weights.suffix == ".npz" else "first")
    losses = list(format_losses(weight_tensors(weights), dtypes or WEIGHT_DTYPES, fidelities or READ_BITS, axis))
    if not losses:
        raise UserError(f"{str(weights)!r} has no floating-point array; give a file of weights")
    if json_output:
        _print_json(weights, axis, losses)
    else:
        _show(weights, axis, losses)


def _print_json(weights: Path, axis: str, losses: list[TensorLoss]) -> None:
    from dataclasses import asdict

    def finite(value: object) -> object:
        return value if not isinstance(value, float) or value - value == 0.0 else None

    rows = [{key: finite(value) for key, value in asdict(loss).items()} for loss in losses]
    print_json("tt-formats", {"weights": str(weights), "block_axis": axis, "losses": rows})


def _show(weights: Path, axis: str, losses: list[TensorLoss]) -> None:
    from itertools import groupby

    from rich.text import Text

    from ...benchmarks.reports.fit import fitted
    from ...benchmarks.reports.terminal import output_console

    console = output_console()
    console.print(Text(f"{weights}: losses by TT format and fidelity (blocks of 16 along the {axis} dimension)"))
    broken = any(loss.non_finite for loss in losses)
    for (tensor, shape), rows in groupby(_grouped(losses), key=lambda row: (row[0].tensor, row[0].shape)):
        console.print(Text(f"{tensor}  {'x'.join(map(str, shape))}", style="bold"))
        console.print(fitted(_table(list(rows), broken), console))


def _table(rows: list[tuple[TensorLoss, str]], broken: bool) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for column in ("format", "fidelity"):
        # The same width for every tensor.
        table.add_column(column, min_width=10)
    for column in ("rel. RMS", "max abs", "saturated", "flushed", *(["not finite"] if broken else [])):
        table.add_column(column, justify="right")
    for loss, fidelities in rows:
        table.add_row(
            loss.dtype,
            fidelities,
            f"{loss.relative_rms:.2e}",
            f"{loss.max_abs:.2e}",
            f"{loss.saturated:,}",
            f"{loss.flushed:,}",
            *([f"{loss.non_finite:,}"] if broken else []),
        )
    return table


def _grouped(losses: list[TensorLoss]) -> list[tuple[TensorLoss, str]]:
    """Merges neighbouring rows that differ only in the fidelity's name into one, such as hifi2-4 or lofi-hifi4."""
    from dataclasses import replace

    rows: list[tuple[TensorLoss, str]] = []
    for loss in losses:
        if rows and replace(rows[-1][0], fidelity=loss.fidelity) == loss:
            first = rows[-1][0]
            last = loss.fidelity.removeprefix("hifi") if first.fidelity.startswith("hifi") else loss.fidelity
            rows[-1] = (first, f"{first.fidelity}-{last}")
        else:
            rows.append((loss, loss.fidelity))
    return rows
