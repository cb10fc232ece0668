"""`isotrain predict`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...albert_core.terminal.console import say, say_lines
from ...albert_core.terminal.text import clean, json_text
from ..help import panel
from ..streams import kept

if TYPE_CHECKING:
    from ...albert_core.inference.predict import Predictor
    from ...albert_core.inference.prediction_files import Inputs
    from ...albert_core.tasks import Prediction
    from ...albert_core.tokens.store import Progress

_texts, _model, _output = map(panel, ("What is asked", "Which model, where", "Output"))

STDIN = 0
# The most rows of a printed table. Further rows get another table.
TABLE_ROWS = 100


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, as `isotrain train` printed it.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...",
            help="Texts to predict for; - reads them from standard input as they come, one a line, pairs with a tab "
            "between the two.",
        ),
    ] = None,
    pairs: Annotated[
        list[str] | None,
        _texts(
            "--pair",
            "--context",
            metavar="TEXT",
            help="Second text of a pair, or context of a question; once for each TEXT, in their order.",
        ),
    ] = None,
    questions: Annotated[
        list[str] | None, _texts("--question", metavar="TEXT", help="The same as a TEXT; may be repeated.")
    ] = None,
    file: Annotated[
        Path | None,
        _texts(
            "--csv",
            "--file",
            help="CSV, TSV, JSON, JSONL, Parquet or SQuAD file of texts, or a split's folder of `datasets`.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        _output(
            "--out",
            help="CSV or JSONL file to write, the input's columns and then the answers; or .json, answers by id.",
        ),
    ] = None,
    text_column: Annotated[str | None, _texts(help="Column of the text, when it isn't found by its name.")] = None,
    pair_column: Annotated[
        str | None, _texts(help="Column of the second text, when it isn't found by its name.")
    ] = None,
    checkpoint: Annotated[
        str | None, _model(help="last, best, or a checkpoint's folder, instead of the finished model.")
    ] = None,
    backend: Annotated[str | None, _model(help="Device, when not the run's own.")] = None,
    model: Annotated[
        str | None, _model(help="Where the encoder is now, when the run has no copy of it and it has moved.")
    ] = None,
    json_output: Annotated[bool, _output("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a trained run about new texts.

    Examples:

      isotrain predict runs/banking77-... "I lost my card" "What is the exchange rate?"

      isotrain predict runs/mrpc-... "He slept late ." --pair "He got up late ."

      isotrain predict runs/squad-... --question "Where was she born?" --context "Ada Lovelace was born in London."

      isotrain predict runs/banking77-... --csv new.csv --out labelled.csv

      tail -f questions.txt | isotrain predict runs/banking77-... - --json

      isotrain predict runs/squad-... --file dev-v1.1.json --out predictions.json
    """
    from ... import UserError
    from ...albert_core.runs.folder import open_run

    texts = [*(texts or ()), *(questions or ())]
    if bool(texts) == (file is not None):
        raise UserError("give either texts or --csv FILE to predict, not both and not neither")
    if pairs and not texts:
        raise UserError(
            "--pair is the second of a text on the command line; a file has a column of them (--pair-column)"
        )
    folder = open_run(run)
    _check_out(out, file)

    from ...albert_core.inference.lines import line_parts
    from ...albert_core.inference.predict import load_predictor
    from ...albert_core.inference.prediction_files import read_inputs

    inputs = None
    if file is not None:
        by_id = out is not None and out.suffix.lower() == ".json"
        inputs = read_inputs(folder, file, text_column, pair_column, by_id)
    predictor = load_predictor(folder, backend, checkpoint, model)
    if texts == ["-"] and not pairs:
        parts = line_parts(STDIN, predictor.task.reads_pairs(predictor.recalled))
        # The first is read before anything is printed, so that input of no use leaves nothing half printed.
        answers = (predictor.predict(*part) for part in chain([next(parts)], parts))
        _print(answers, predictor.label, json_output)
    elif inputs is None:
        _print(iter([predictor.predict(texts, pairs or None)]), predictor.label, json_output)
    elif out is None:
        answers = (predictor.predict(*inputs.texts(part)) for part in inputs.parts())
        _print(answers, predictor.label, json_output)
    else:
        _write(out, inputs, predictor)


def _write(out: Path, inputs: Inputs, predictor: Predictor) -> None:
    """Writes the answers to a file and says so."""
    from ...albert_core.inference.prediction_files import answer_file
    from ...albert_core.output.live import reporter_for_terminal
    from ...albert_core.runs.files import sweep

    # Removes what killed processes left there.
    sweep(out.absolute().parent)
    done = 0
    with answer_file(out, inputs, predictor.backend.caveat) as answers, reporter_for_terminal() as reporter:
        advance = reporter.phase("predictions")
        for part in inputs.parts():
            predictor.progress = _of_all(advance, done, len(part.rows), inputs.rows)
            answers.add(part, predictor.predict(*inputs.texts(part)))
            done += len(part.rows)
    with kept(f"the predictions are complete and are kept in {out}"):
        say(f"{done:,} predictions of {predictor.label} written to {out}")
        for name, used in answers.names.items():
            if used == name:
                continue
            say(f"{name} is under {clean(used)!r}: the input has its own {name!r}")


def _of_all(advance: Progress | None, done: int, rows: int, total: int) -> Progress:
    """Reports the progress of some rows as that of all. `done` is the number of rows before them."""

    def progress(count: int, of: int) -> None:
        if advance is not None:
            advance(done + rows * count // of, total)

    return progress


def _check_out(out: Path | None, file: Path | None) -> None:
    from ... import UserError

    if out is None:
        return
    if file is None:
        raise UserError("--out needs --csv; without it predictions are printed")
    if out.suffix.lower() not in (".csv", ".jsonl", ".json"):
        raise UserError(f"--out {str(out)!r} is no .csv, .jsonl or .json file; name one")
    if out.exists():
        raise UserError(f"--out {str(out)!r} exists already; choose another name, or remove it first")


def _print(answers: Iterator[Sequence[Prediction]], label: str, json_output: bool) -> None:
    """Prints a few answers at a time, since there may be any number of them."""
    if json_output:
        _print_json(answers, label)
        return
    say(label)
    for part in answers:
        for start in range(0, len(part), TABLE_ROWS):
            _print_table(part[start : start + TABLE_ROWS])


def _print_json(answers: Iterator[Sequence[Prediction]], label: str) -> None:
    typer.echo('{\n  "schema": "isotrain.predict/1",\n', nl=False)
    typer.echo(f'  "model": {json_text(label)},\n  "predictions": [', nl=False)
    before = "\n"
    for part in answers:
        for item in part:
            shown = json_text({**item.asked(), **item.answer()})
            typer.echo(before + "    " + shown.replace("\n", "\n    "), nl=False)
            before = ",\n"
    typer.echo("\n  ]\n}")


def _print_table(items: Sequence[Prediction]) -> None:
    from ...benchmarks.reports.blocks import Table, word_columns
    from ...benchmarks.reports.terminal import in_columns, output_console

    rows = [{name: clean(_shown(value)) for name, value in {**item.asked(), **item.answer()}.items()} for item in items]
    console = output_console()
    table = in_columns(Table("", word_columns(*rows[0]), [list(row.values()) for row in rows]), console)
    if table is not None:
        console.print(table)
        return
    for row in rows:
        say_lines([*(f"{name}: {value}" for name, value in row.items()), ""])


def _shown(value: str | float | Sequence[str | float]) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)
