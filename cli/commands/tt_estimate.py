"""`isotrain tt-estimate`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..documents import print_json


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
