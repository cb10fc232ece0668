"""`isotrain predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .streams import kept

if TYPE_CHECKING:
    from ..albert_core.tasks import Prediction


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, as `isotrain train` printed it.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to predict for.")] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            "--pair",
            "--context",
            metavar="TEXT",
            help="Second text of a pair, or context of a question; once for each TEXT, in their order.",
        ),
    ] = None,
    questions: Annotated[
        list[str] | None, typer.Option("--question", metavar="TEXT", help="The same as a TEXT; may be repeated.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--csv", "--file", help="CSV, TSV, JSONL or SQuAD JSON file of texts.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="CSV or JSONL file to write, the input's columns and the predictions'; or .json, answers by id.",
        ),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the text, when it isn't found by its name.")
    ] = None,
    pair_column: Annotated[
        str | None, typer.Option(help="Column of the second text, when it isn't found by its name.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="last, best, or a checkpoint's folder, instead of the finished model.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Device, when not the run's own.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the encoder is now, when the run has no copy of it and it has moved.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a trained run about new texts.

    Examples:

      isotrain predict runs/banking77-... "I lost my card" "What is the exchange rate?"

      isotrain predict runs/mrpc-... "He slept late ." --pair "He got up late ."

      isotrain predict runs/squad-... --question "Where was she born?" --context "Ada Lovelace was born in London."

      isotrain predict runs/banking77-... --csv new.csv --out labelled.csv

      isotrain predict runs/squad-... --file dev-v1.1.json --out predictions.json
    """
    from .. import UserError
    from ..albert_core.run import open_run

    texts = [*(texts or ()), *(questions or ())]
    if bool(texts) == (file is not None):
        raise UserError("give either texts or --csv FILE to predict, not both and not neither")
    if pairs and not texts:
        raise UserError(
            "--pair is the second of a text on the command line; a file has a column of them (--pair-column)"
        )
    folder = open_run(run)
    _check_out(out, file)

    from ..albert_core.predict import answer_ids, load_predictor, read_inputs, write_predictions

    inputs = None if file is None else read_inputs(folder, file, text_column, pair_column)
    if inputs is not None and out is not None and out.suffix.lower() == ".json":
        answer_ids(inputs.table)
    predictor = load_predictor(folder, backend, checkpoint, model)
    if inputs is None:
        _print(predictor.predict(texts, pairs or None), predictor.label, json_output)
        return
    predictions = predictor.predict(inputs.texts, inputs.pairs)
    if out is None:
        _print(predictions, predictor.label, json_output)
        return
    write_predictions(out, inputs.table, predictions, predictor.backend.info().emulated_label)
    with kept(f"the predictions are complete and are kept in {out}"):
        typer.echo(f"{len(predictions):,} predictions of {predictor.label} written to {out}")


def _check_out(out: Path | None, file: Path | None) -> None:
    from .. import UserError

    if out is None:
        return
    if file is None:
        raise UserError("--out needs --csv; without it predictions are printed")
    if out.suffix.lower() not in (".csv", ".jsonl", ".json"):
        raise UserError(f"--out {str(out)!r} is no .csv, .jsonl or .json file; name one")
    if out.exists():
        raise UserError(f"--out {str(out)!r} exists already; choose another name, or remove it first")


def _print(predictions: list[Prediction], label: str, json_output: bool) -> None:
    if json_output:
        import json

        typer.echo(
            json.dumps(
                {"model": label, "predictions": [item.asked() | item.answer() for item in predictions]},
                ensure_ascii=False,
                indent=2,
            )
        )
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    typer.echo(label)
    table = Table()
    for column in (*predictions[0].asked(), *predictions[0].answer()):
        table.add_column(column, overflow="fold")
    for item in predictions:
        table.add_row(*(Text(_shown(value)) for value in (item.asked() | item.answer()).values()))
    Console().print(table)


def _shown(value: str | int | float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
