"""`isotrain predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..albert_core.data import Table
    from ..albert_core.predict import Prediction


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, as `isotrain train` printed it.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to label.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="CSV, TSV or JSONL file with a text column.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="CSV file to write; the input's columns plus label and probability.")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the text, when it isn't found by its name.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="last, best, or a checkpoint's folder, instead of the finished model.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Device, when not the run's own.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the encoder is now, when it has moved since training.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Label new texts with a trained run.

    Examples:

      isotrain predict runs/banking77-... "I lost my card" "What is the exchange rate?"

      isotrain predict runs/banking77-... --csv new.csv --out labelled.csv
    """
    from .. import UserError
    from ..albert_core.run import open_run

    if bool(texts) == (csv_file is not None):
        raise UserError("give either texts or --csv FILE to predict, not both and not neither")
    if (out is not None) and csv_file is None:
        raise UserError("--out needs --csv; without it predictions are printed")
    folder = open_run(run)
    rows = _read(csv_file, text_column) if csv_file is not None else None
    if out is not None and out.exists():
        raise UserError(f"--out {str(out)!r} exists already; choose another name, or remove it first")

    from ..albert_core.predict import load_predictor, texts_of

    predictor = load_predictor(folder, backend, checkpoint, model)
    if rows is None:
        _print(predictor.predict(texts or []), predictor.label, json_output)
        return
    table, column = rows
    predictions = predictor.predict(texts_of(table, column))
    if out is None:
        _print(predictions, predictor.label, json_output)
        return
    from ..albert_core.predict import write_predictions

    write_predictions(out, table, predictions)
    typer.echo(f"{len(predictions):,} predictions of {predictor.label} written to {out}")


def _read(path: Path, text_column: str | None) -> tuple[Table, str]:
    from ..albert_core.data import choose_text_column, read_table

    table = read_table(path)
    return table, choose_text_column(table.origin, table.columns, text_column)


def _print(predictions: list[Prediction], label: str, json_output: bool) -> None:
    if json_output:
        import json

        typer.echo(
            json.dumps(
                {"model": label, "predictions": [vars(item) for item in predictions]}, ensure_ascii=False, indent=2
            )
        )
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    typer.echo(label)
    table = Table()
    table.add_column("text", overflow="fold")
    table.add_column("label")
    table.add_column("probability", justify="right")
    for item in predictions:
        table.add_row(Text(item.text), Text(item.label), f"{item.probability:.4f}")
    Console().print(table)
