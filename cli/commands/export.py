"""`isotrain export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...albert_core.terminal.console import say
from ..documents import print_json
from ..help import panel
from ..streams import kept

_what, _output = map(panel, ("What is exported", "Output"))


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, as `isotrain train` printed it.")],
    form: Annotated[
        str,
        _output(
            "--format",
            help="transformers (a whole model), safetensors (encoder and head), peft (adapters), torch-export or onnx.",
        ),
    ],
    out: Annotated[
        Path | None, _output("--out", "-o", help="Folder to write, a new one; RUN/export-FORMAT when absent.")
    ] = None,
    checkpoint: Annotated[
        str | None, _what(help="last, best, or a checkpoint's folder, instead of the finished model.")
    ] = None,
    backend: Annotated[str | None, _what(help="Device to open the run on, when not its own.")] = None,
    model: Annotated[str | None, _what(help="Where the encoder is now, when it has moved since training.")] = None,
    json_only: Annotated[bool, _output("--json", help="Where it is and how it was checked, as JSON.")] = False,
) -> None:
    """Write a trained run for other programs, and check that what was written gives the same logits.

    Examples:

      isotrain export runs/banking77-... --format transformers

      isotrain export runs/banking77-... --format onnx -o intents-onnx/
    """
    from dataclasses import asdict

    from ...albert_core.inference.export import export_run
    from ...albert_core.runs.folder import open_run

    folder = open_run(run)
    target = out if out is not None else folder.path / f"export-{form}"
    result = export_run(folder, form, target, backend, checkpoint, model)
    with kept(f"the export is complete and is kept in {result.folder}"):
        if json_only:
            print_json("export", {"format": form, **asdict(result), "folder": str(result.folder)})
            return
        say(f"{form} export of {result.label}: {result.folder}")
        if result.trained_in != "float32":
            say(f"trained in {result.trained_in}, exported in float32")
        say(
            f"checked by {result.judge}: logits within {result.max_abs:.1e} (max abs) and {result.relative_l2:.1e} "
            "(relative L2) of the run's model in float32"
        )
