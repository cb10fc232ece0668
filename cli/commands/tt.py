"""`isotrain tt-losses`, `isotrain tt-formats` and `isotrain tt-estimate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...albert_core.terminal.console import say
from ...albert_core.terminal.invocation import command
from ..documents import check_html, print_json
from ..streams import kept

if TYPE_CHECKING:
    from ...benchmarks.reports.blocks import Column
    from ...kernels.tt.losses import TensorLoss


def tt_losses(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG", help="YAML file, a packaged one by name, or your own model: FILE.py:NAME, MODULE:NAME."
        ),
    ],
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of CONFIG; may be repeated.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each run.")] = 20,
    html: Annotated[Path | None, typer.Option(help="Write tables and chart as one HTML file, too.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what each part of a Tenstorrent card's arithmetic costs a job. No card is used.

    The job's first steps are trained in float64 on the host, then in the card's arithmetic as CONFIG has it, emulated
    in all operations, and then with one thing changed at a time: each operation alone is the card's, or alone in
    float32; the math fidelity, the destination, the formats of frozen weights and of the optimizer have other values.
    The distance of the losses from float64's ranks them: what costs most stands first. Ctrl-C shows what is measured.

    tt.emulation=exact computes the card's bits, slowly, instead of its error.

    Examples:

      isotrain tt-losses quickstart --set model_name=random:tiny

      isotrain tt-losses mrpc --set tt.math_fidelity=hifi2 --set tt.fp32_dest_acc_en=false --html losses.html
    """
    from ...albert_core.runs.files import write_text
    from ...benchmarks.reports.html.write import sections_page
    from ...benchmarks.reports.terminal import output_console, print_blocks
    from ...benchmarks.reports.views.tt_losses import tt_losses_section, tt_losses_view
    from ...benchmarks.tt_losses import tt_losses as measured
    from ...kernels.names import check_range

    check_range("--steps", steps, 2, 10**6)
    check_html(html)
    found = measured(config, sets or (), steps, lambda line: say(line, err=True))
    if html is not None:
        title = f"isotrain tt-losses: {found.label}"
        write_text(html, sections_page(title, found.arithmetic, [tt_losses_section(found)]))
    with kept(f"the measurement is complete{f' and is kept in {html}' if html else ''}"):
        if json_output:
            from dataclasses import asdict

            print_json("tt-losses", asdict(found))
        else:
            print_blocks(tt_losses_view(found), output_console())
            again = command("parity", config, *(f"--set={item}" for item in sets or ()))
            say(f"next, whether a whole run stands it: {again} --candidate tt:tt.emulate=all")
        if html is not None:
            say(f"report: {html}", err=json_output)
    if not found.complete:
        raise KeyboardInterrupt("what was measured is shown")


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

    from ...benchmarks.reports.blocks import Table
    from ...benchmarks.reports.terminal import fitted, output_console

    console = output_console()
    console.print(Text(f"{weights}: losses by TT format and fidelity (blocks of 16 along the {axis} dimension)"))
    columns = _columns(broken=any(loss.non_finite for loss in losses))
    for (tensor, shape), rows in groupby(_grouped(losses), key=lambda row: (row[0].tensor, row[0].shape)):
        console.print(Text(f"{tensor}  {'x'.join(map(str, shape))}", style="bold"))
        console.print(fitted(Table("", columns, list(rows)), console))


def _columns(broken: bool) -> Sequence[Column[tuple[TensorLoss, str]]]:
    from ...benchmarks.reports.blocks import Column

    def figures(header: str, cell: Callable[[TensorLoss], str]) -> Column[tuple[TensorLoss, str]]:
        return Column(header, lambda row: cell(row[0]))

    return (
        # The same width for every tensor.
        Column("format", lambda row: f"{row[0].dtype:10}", numeric=False),
        Column("fidelity", lambda row: f"{row[1]:10}", numeric=False),
        figures("rel. RMS", lambda loss: f"{loss.relative_rms:.2e}"),
        figures("max abs", lambda loss: f"{loss.max_abs:.2e}"),
        figures("saturated", lambda loss: f"{loss.saturated:,}"),
        figures("flushed", lambda loss: f"{loss.flushed:,}"),
        *([figures("not finite", lambda loss: f"{loss.non_finite:,}")] if broken else []),
    )


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


def tt_estimate(
    model: Annotated[str, typer.Option(help="As model_name in a configuration.")] = "random:albert-base-v2",
    card: Annotated[str, typer.Option(help="n150, n300 or p150.")] = "n150",
    sequences: Annotated[int, typer.Option(help="Sequences in a batch.")] = 256,
    length: Annotated[int, typer.Option(help="Tokens in each.")] = 16,
    weight_dtype: Annotated[str, typer.Option(help="bfloat16, bfp_bf8 or bfp_bf4.")] = "bfloat16",
    cores: Annotated[int | None, typer.Option(help="Other than the card's published number.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate the frozen forward's speed on a Tenstorrent card, only from published peaks. Nothing is measured.

    Example:

      isotrain tt-estimate --card p150 --weight-dtype bfp_bf8
    """
    from ... import UserError
    from ...albert_core.model.encoder import load_encoder
    from ...benchmarks.work.flops import encoder_flops
    from ...kernels.names import check_range
    from ...kernels.tt.estimate import Estimate, card_named, estimate_encoder
    from ...kernels.tt.model import PHASES

    chosen = card_named(card, cores)
    for flag, value in (("--sequences", sequences), ("--length", length)):
        check_range(flag, value, 1, 10**6)
    encoder = load_encoder(model)
    config = encoder.weights.config
    if length > config.max_positions:
        raise UserError(
            f"--length {length} exceeds the positions that {encoder.label} has; give at most {config.max_positions}"
        )
    flops = encoder_flops(config, [length] * sequences)
    rows = [estimate_encoder(config, sequences * length, flops, chosen, fidelity, weight_dtype) for fidelity in PHASES]
    if json_output:
        from dataclasses import asdict

        print_json("tt-estimate", {"model": encoder.label, "estimates": [asdict(row) for row in rows]})
        return
    from ...benchmarks.reports.blocks import Column, Table
    from ...benchmarks.reports.terminal import fitted, output_console

    columns: tuple[Column[Estimate], ...] = (
        Column("fidelity", lambda row: row.math_fidelity, numeric=False),
        Column("peak TFLOP/s", lambda row: f"{row.peak_tflops:.0f}"),
        Column("estimate tokens/s", lambda row: f"{row.tokens_per_second:,.0f}"),
        Column("estimate ms", lambda row: f"{row.seconds * 1e3:.3f}"),
        Column("bound by", lambda row: row.bound, numeric=False),
    )
    console = output_console()
    # Not the table's title, which would wrap at the table's width.
    given = f"{encoder.label} on {card}, {sequences} x {length} tokens, {weight_dtype}"
    console.print(f"estimate, not a measurement: {given}")
    console.print(fitted(Table("", columns, rows), console))
    console.print("assumptions of the estimate (at the last fidelity):")
    for assumption in rows[-1].assumptions:
        console.print(f"- {assumption}")
